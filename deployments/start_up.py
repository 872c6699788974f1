"""What a replica's start consists of, in seconds: for its log and for `livepeer-ray bench`."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

Part = Literal["process", "find", "imports", "weights", "device", "warm-up"]


class StartUp:
    """A stopwatch with one hand: what passes between two marks is the second mark's part.

    The first part, `process`, is what interpreter, Ray and Serve took before the replica: CPU
    time, since Ray keeps processes at hand, and one of them may have idled for hours.
    """

    def __init__(self) -> None:
        self._seconds: dict[Part, float] = {"process": time.process_time()}
        self._last_s = time.perf_counter()

    def mark(self, part: Part) -> None:
        """Counts the time since the last mark towards a part; to be called as it ends."""
        now_s = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now_s - self._last_s
        self._last_s = now_s

    @property
    def seconds(self) -> Mapping[str, float]:
        """By part, in the order in which they first ended."""
        return {str(part): seconds for part, seconds in self._seconds.items()}

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._seconds.items())
        return f"{sum(self._seconds.values()):.1f} s ({parts})"


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Looks for no garbage, up to the end or to `libraries_are_there`."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def libraries_are_there() -> None:
    """Collects garbage again, and never looks at what there is by now.

    Imports make some 500,000 objects and hardly any garbage. Looking through them time and again
    is an eighth of their CPU time, and later holds up a step of the model.
    Not to be called later: garbage of the loading holds weights, and would stay.
    """
    gc.freeze()
    gc.enable()
