"""GPU facts of this machine, through NVML."""

import logging
from dataclasses import dataclass

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
