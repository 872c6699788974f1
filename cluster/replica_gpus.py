"""On which GPUs the replicas of each model sit, and the facts of those GPUs.

Which cards a replica was given, Ray tells only the replica itself: it is asked past Serve, by a
call of Ray's own that every actor answers, so that no slot is taken. The facts are read by a
task on its node, where NVML may take a while without holding up a replica.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ai_models import ModelKey
from cluster.capacity import ModelStatus
from deployments.hardware import GPU, local_gpus, own_gpu_ids

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""For all replicas to answer, and again for all nodes; what does not is left out."""

KeyT = TypeVar("KeyT")
ResultT = TypeVar("ResultT")

Replica = tuple[str, str]
"""The name of its actor and the id of its node."""


def gpus_by_model(
    status: Mapping[ModelKey, ModelStatus],
    *,
    read: Callable[[Sequence[str]], dict[str, GPU]] = local_gpus,
) -> dict[ModelKey, Sequence[GPU]]:
    """The GPUs that hold a running replica of each model. Blocking.

    A replica or node that does not answer in time is left out: hardware is information only.

    Args:
        status: of the models.
        read: the facts of some GPUs of the machine where it is called.
    """
    if not _nodes_with_gpus():
        return {}
    ids = _gpu_ids({replica for model in status.values() for replica in model.replicas})
    wanted: dict[str, set[str]] = defaultdict(set)
    for (_, node), found in ids.items():
        wanted[node].update(found)
    task = ray.remote(num_cpus=0)(read)
    facts = _gathered(
        {
            node: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            ).remote(sorted(names))
            for node, names in wanted.items()
            if names
        },
        what="node",
    )
    return {
        key: [
            facts[node][name]
            for node, name in sorted(
                {(replica[1], name) for replica in model.replicas for name in ids.get(replica, ())}
            )
            if name in facts.get(node, {})
        ]
        for key, model in status.items()
    }


def _gpu_ids(replicas: set[Replica]) -> dict[Replica, list[str]]:
    """The GPUs of each replica, by the names that they have in its CUDA_VISIBLE_DEVICES."""
    asked: dict[Replica, ray.ObjectRef[list[str]]] = {}
    for replica in replicas:
        try:
            actor = ray.get_actor(replica[0], namespace="serve")
        except ValueError:
            continue  # it has ended since
        asked[replica] = actor.__ray_call__.remote(own_gpu_ids)
    return _gathered(asked, what="replica")


def _gathered(asked: "Mapping[KeyT, ray.ObjectRef[ResultT]]", *, what: str) -> dict[KeyT, ResultT]:
    """The answers that came in time."""
    if asked:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=TIMEOUT_S)
    answers: dict[KeyT, ResultT] = {}
    for key, answer in asked.items():
        try:
            answers[key] = ray.get(answer, timeout=0)
        except RayError as error:
            logger.warning("%s %s does not report its GPUs: %s", what, key, type(error).__name__)
    return answers


def _nodes_with_gpus() -> bool:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0.0) > 0
