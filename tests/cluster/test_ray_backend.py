"""What a Serve handle raises, sorted by what should happen to the job."""

from typing import Any

import pytest
from ray import exceptions
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
from cluster.backends.ray_serve import as_job_error
from cluster.errors import InsufficientCapacity, JobError, JobFailed, JobRejected, ReplicaLost
from deployments.errors import BadRequest, InferenceFailed, ReplicaBroken

KEY = ModelKey("text-to-image", "org/a")
RAY: Any = exceptions
"""Some of Ray's constructors have no annotations."""


def from_replica(cause: Exception) -> RayTaskError:
    """As Ray wraps an exception of a replica; its text is the remote traceback."""
    error = RAY.RayTaskError("run", "Traceback ...\nand so on", cause)
    wrapped = error.as_instanceof_cause()
    assert isinstance(wrapped, RayTaskError)
    return wrapped


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (from_replica(BadRequest("width: no")), JobRejected, "width: no"),
        (from_replica(InferenceFailed("out of memory")), JobFailed, "out of memory"),
        (from_replica(ReplicaBroken("CUDA is broken")), ReplicaLost, "CUDA is broken"),
        (from_replica(KeyError("a bug")), JobFailed, "KeyError: 'a bug'"),
        (ActorDiedError(), ReplicaLost, "died while it ran"),
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
