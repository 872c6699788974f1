"""GPU facts of this machine, through NVML."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pynvml

logger = logging.getLogger(__name__)


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
    compute_percent: int = 0
    memory_percent: int = 0
    """Of the last moments: in how many of them it computed, and moved data. 0 for a MIG instance,
    of which NVML does not say."""


def local_gpus(ids: Iterable[str] | None = None, *, nvml: Any = pynvml) -> dict[str, GPU]:
    """The GPUs of this machine by id; none when NVML is missing or fails, which is no error.

    Args:
        ids: those to read, as they stand in CUDA_VISIBLE_DEVICES: an index, or the uuid of a
            card or of a MIG instance. None for all cards, by index. CUDA and NVML count cards
            alike where all of a machine are of one model, or CUDA_DEVICE_ORDER=PCI_BUS_ID is set.
        nvml: stands for the library in tests.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        logger.debug("no NVML: %s", error)
        return {}
    found: dict[str, GPU] = {}
    try:
        names = range(nvml.nvmlDeviceGetCount()) if ids is None else ids
        for name in map(str, names):
            try:
                found[name] = _read(name, nvml)
            except nvml.NVMLError as error:
                logger.warning("GPU %s is not reported: %s", name, error)
    except nvml.NVMLError as error:
        logger.warning("NVML failed, GPUs are not reported: %s", error)
    finally:
        nvml.nvmlShutdown()
    return found


def own_gpu_ids(_actor: object) -> list[str]:
    """The GPUs that Ray gave the actor that runs this, named as in its CUDA_VISIBLE_DEVICES.

    Here because this module is light: replicas import it when they are asked.
    """
    import ray

    ids: list[str] = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return ids


def own_gpus() -> list[GPU]:
    """The GPUs that Ray gave the actor in which this runs, as they are now."""
    return list(local_gpus(own_gpu_ids(None)).values())


def _read(name: str, nvml: Any) -> GPU:
    if name.isdecimal():
        device = nvml.nvmlDeviceGetHandleByIndex(int(name))
    else:
        device = nvml.nvmlDeviceGetHandleByUUID(name)
    # A MIG instance has memory of its own; what it can compute is its card's.
    mig = name.startswith("MIG-")
    card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device) if mig else device
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(card)
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    busy = None if mig else nvml.nvmlDeviceGetUtilizationRates(device)
    return GPU(
        id=str(nvml.nvmlDeviceGetUUID(device)),
        name=str(nvml.nvmlDeviceGetName(device)),
        major=int(major),
        minor=int(minor),
        memory_free_bytes=int(memory.free),
        memory_total_bytes=int(memory.total),
        compute_percent=int(busy.gpu) if busy else 0,
        memory_percent=int(busy.memory) if busy else 0,
    )
