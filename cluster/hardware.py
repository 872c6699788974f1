"""GPU facts through NVML: of this machine, and of the nodes of a cluster."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pynvml
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ai_models import ModelKey
from cluster.serve_client import ModelStatus, nodes

logger = logging.getLogger(__name__)

NODE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """One card, in the terms of go-livepeer's GPUComputeInfo."""

    id: str
    """NVML's uuid."""
    name: str
    major: int
    minor: int
    """CUDA compute capability, major.minor."""
    memory_free_bytes: int
    memory_total_bytes: int


def local_gpus() -> list[GPU]:
    """The GPUs of this machine; none when NVML is missing or fails, which is no error."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.debug("no NVML: %s", error)
        return []
    try:
        return [_read(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        logger.warning("NVML failed, GPUs are not reported: %s", error)
        return []
    finally:
        pynvml.nvmlShutdown()


def _read(index: int) -> GPU:
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(device)
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    return GPU(
        id=str(pynvml.nvmlDeviceGetUUID(device)),
        name=str(pynvml.nvmlDeviceGetName(device)),
        major=int(major),
        minor=int(minor),
        memory_free_bytes=int(memory.free),
        memory_total_bytes=int(memory.total),
    )


def gpus_by_model(status: Mapping[ModelKey, ModelStatus]) -> dict[ModelKey, Sequence[GPU]]:
    """The GPUs of the nodes that hold a running replica of each model. Blocking.

    A node that does not answer in time is left out: hardware is information only, and
    registering does not wait for it.
    """
    with_gpus = {
        node["NodeID"] for node in nodes() if node["Alive"] and node["Resources"].get("GPU")
    }
    wanted = sorted({node for model in status.values() for node in model.nodes} & with_gpus)
    read = ray.remote(num_cpus=0)(local_gpus)
    tasks = {
        node: read.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        ).remote()
        for node in wanted
    }
    found: dict[str, list[GPU]] = {}
    for node, task in tasks.items():
        try:
            found[node] = ray.get(task, timeout=NODE_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            logger.warning("node %s does not report its GPUs: %s", node, type(error).__name__)
    return {
        key: [gpu for node in sorted(model.nodes) for gpu in found.get(node, ())]
        for key, model in status.items()
    }
