"""What a replica tells of itself to whoever measures it."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One replica, now."""

    device: str
    """`cpu`, or the GPU's name."""
    start_up_s: Mapping[str, float]
    """Seconds by part: `deployments.start_up`."""
    memory_peak_bytes: int
    """Most that the process had in memory; mapped weights are among it."""
    gpu_peak_bytes: int | None
    """Most that the process had reserved on its GPU; None without one."""
    gpu_used_bytes: int | None
    """What all processes have there now, as nvidia-smi shows it: CUDA's own share is among it."""


def read_vitals(start_up_s: Mapping[str, float]) -> Vitals:
    """Reads them; to be called in the thread that uses the device."""
    import torch

    gpu = torch.cuda.is_available()
    # The driver's figures rather than NVML's, which are the same and may be out of reach.
    free_bytes, total_bytes = torch.cuda.mem_get_info() if gpu else (0, 0)
    return Vitals(
        device=torch.cuda.get_device_name() if gpu else "cpu",
        start_up_s=start_up_s,
        # Linux counts in units of 1024 bytes.
        memory_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        gpu_peak_bytes=torch.cuda.max_memory_reserved() if gpu else None,
        gpu_used_bytes=total_bytes - free_bytes if gpu else None,
    )
