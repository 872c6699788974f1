"""What a Serve handle raises, sorted by what should happen to the job."""

from pathlib import Path
from typing import Any

import pytest
import ray
from ray import exceptions
from ray.core.generated import common_pb2
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from cluster.ai_models import ModelKey
from cluster.backends.ray_serve import WITH_ITS_NODE, as_job_error
from cluster.errors import InsufficientCapacity, JobError, JobFailed, JobRejected, ReplicaLost
from deployments.errors import BadRequest, InferenceFailed, ReplicaBroken

KEY = ModelKey("text-to-image", "org/a")
RAY: Any = exceptions
"""Some of Ray's constructors have no annotations."""

MESSAGES: Any = common_pb2
"""Nor have its messages."""


def from_replica(cause: Exception) -> RayTaskError:
    """As Ray wraps an exception of a replica; its text is the remote traceback."""
    error = RAY.RayTaskError("run", "Traceback ...\nand so on", cause)
    wrapped = error.as_instanceof_cause()
    assert isinstance(wrapped, RayTaskError)
    return wrapped


def actor_died(why: str, actor: int = 1) -> ActorDiedError:
    """As Ray makes it of what the cluster knows of the death."""
    actor_id = bytes([actor]) * 16
    return ActorDiedError(MESSAGES.ActorDiedErrorContext(error_message=why, actor_id=actor_id))


WORKER_DIED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
)
NODE_DIED = f"The actor died because {WITH_ITS_NODE}. Node Id: ff"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (from_replica(BadRequest("width: no")), JobRejected, "width: no"),
        (from_replica(InferenceFailed("out of memory")), JobFailed, "out of memory"),
        (from_replica(ReplicaBroken("CUDA is broken")), ReplicaLost, "CUDA is broken"),
        (from_replica(KeyError("a bug")), JobFailed, "KeyError: 'a bug'"),
        (ActorDiedError(), ReplicaLost, "died while it ran"),
        (actor_died(WORKER_DIED), ReplicaLost, "died while it ran"),
        (actor_died(NODE_DIED), ReplicaLost, "went away"),
        (ActorUnavailableError("gone", None), ReplicaLost, "went away"),
        (RAY.NodeDiedError("gone"), ReplicaLost, "went away"),
        (WorkerCrashedError(), ReplicaLost, "died while it ran"),
        (RAY.OutOfMemoryError("killed"), ReplicaLost, "died while it ran"),
        (ObjectLostError("ff" * 28, None, ""), ReplicaLost, "went away"),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), InsufficientCapacity, ""),
        (
            DeploymentUnavailableError(DeploymentID(name="model")),
            InsufficientCapacity,
            "has no replica now",
        ),
        (RayServeException("no application"), InsufficientCapacity, "is not deployed"),
        (RayError("what is this\nsecond line"), JobFailed, "RayError: what is this"),
    ],
)
def test_failures_are_sorted(error: Exception, kind: type[JobError], text: str) -> None:
    job_error = as_job_error(error, KEY)
    assert type(job_error) is kind
    assert text in str(job_error)
    assert "Traceback" not in str(job_error)
    if isinstance(job_error, ReplicaLost):
        assert bool(job_error.dead) == ("died" in text), "a broken one may be broken for long"


def test_ray_still_says_so_where_a_node_took_its_actors_along() -> None:
    gcs_server = Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server"
    assert f"The actor died because {WITH_ITS_NODE}.".encode() in gcs_server.read_bytes()


def death(error: Exception) -> str:
    lost = as_job_error(error, KEY)
    assert isinstance(lost, ReplicaLost)
    assert lost.dead
    return lost.dead


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (actor_died(WORKER_DIED, 1), actor_died(WORKER_DIED, 2)),
        # An actor that was ended for want of memory is not named by its id.
        (RAY.OutOfMemoryError("pid=1, worker ID=a"), RAY.OutOfMemoryError("pid=2, worker ID=b")),
    ],
)
def test_jobs_agree_on_which_death_they_saw(first: Exception, second: Exception) -> None:
    assert death(first) == death(first)
    assert death(first) != death(second)


def test_deaths_without_a_name_are_not_taken_for_one() -> None:
    assert death(WorkerCrashedError()) != death(WorkerCrashedError())
