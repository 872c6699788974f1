"""How many pixels a pass of a diffusion pipeline may have: measured where there is a GPU.

A pass needs memory in proportion to its pixels, as its attention is computed without the whole
matrix. So each pass says what a pixel takes, and the next one has as many as what is free allows.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

logger = logging.getLogger("ray.serve")

MAX_PIXELS = 2 * 1024 * 1024
"""Two images of 1024x1024, four with guidance, keep a large GPU busy; more
only make all of them wait for the last."""

SHARE = 0.8
"""Of the free memory; the rest is for what the allocator cannot use in one piece."""


class Gauge(Protocol):
    """Looks at a device's memory."""

    def free_bytes(self) -> int:
        """What a pass could take now."""

    def begin(self) -> None:
        """Forgets the peak."""

    def peak_bytes(self) -> int:
        """What was taken at most at any time since `begin`, beyond what was taken then."""


class CudaGauge:
    """The GPU of this process, by torch's allocator."""

    def free_bytes(self) -> int:
        """What the driver has left, and what the allocator keeps without using it."""
        import torch

        free, _total = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())

    def begin(self) -> None:
        """Forgets the peak."""
        import torch

        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()

    def peak_bytes(self) -> int:
        """Without what was allocated at the beginning."""
        import torch

        return int(torch.cuda.max_memory_allocated() - self._before)


class PassMemory:
    """What the passes of one pipeline took, and what the next one may."""

    def __init__(self, *, gauge: Gauge | None = None, ceiling: int = MAX_PIXELS) -> None:
        """Starts without knowledge; the warm-up is the first pass.

        Args:
            gauge: of the device; None for one whose memory is not measured, a CPU.
            ceiling: pixels of a pass even if there is memory for more.
        """
        self._gauge = gauge
        self._largest = 0
        self._bytes_per_pixel = 0.0
        self._most = self._ceiling = ceiling

    @property
    def max_pixels(self) -> int:
        """Of the next pass; a single image is drawn even if it has more."""
        if self._gauge is None or not self._bytes_per_pixel:
            return self._ceiling
        fit = self._gauge.free_bytes() * SHARE / self._bytes_per_pixel
        return min(self._ceiling, int(fit))

    @contextmanager
    def measured(self, *, pixels: int) -> Iterator[None]:
        """Learns from a pass of this many pixels, also when it runs out of memory."""
        import torch

        if self._gauge:
            self._gauge.begin()
        try:
            yield
        except torch.OutOfMemoryError:
            self._ceiling = max(1, pixels // 2)
            logger.warning("%d pixels a pass were too many, now at most %d", pixels, self._ceiling)
            raise
        # What was too much may have been so because of somebody else on this GPU.
        self._ceiling = min(self._ceiling * 2, self._most)
        # Of a small pass much is not in proportion: what the largest one took counts.
        if self._gauge and pixels >= self._largest:
            self._largest = pixels
            self._bytes_per_pixel = self._gauge.peak_bytes() / pixels


def for_this_device() -> PassMemory:
    """Returns the memory of the device that this process computes on."""
    import torch

    return PassMemory(gauge=CudaGauge() if torch.cuda.is_available() else None)
