"""Where a replica's start goes: the parts are whole, and named."""

import gc
import time

import pytest

from deployments.start_up import StartUp, libraries_are_there, no_garbage_collection


def test_every_moment_belongs_to_the_part_that_ends_next(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 101.0, 103.0, 103.5, 104.0])
    monkeypatch.setattr(time, "process_time", lambda: 1.5)
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    start_up = StartUp()
    for part in ("imports", "weights", "device", "weights"):
        start_up.mark(part)
    assert start_up.seconds == {"process": 1.5, "imports": 1.0, "weights": 2.5, "device": 0.5}
    assert str(start_up) == "5.5 s (process 1.5, imports 1.0, weights 2.5, device 0.5)"


def test_no_garbage_is_collected_until_the_libraries_are_there() -> None:
    enabled: list[bool] = []

    def load() -> None:
        with no_garbage_collection():
            enabled.append(gc.isenabled())
            libraries_are_there()
            enabled.append(gc.isenabled())
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        load()
    assert enabled == [False, True]
    assert gc.get_freeze_count() > 0


def test_garbage_is_collected_again_when_the_libraries_are_not_there() -> None:
    def load() -> None:
        with no_garbage_collection():
            raise ImportError("broken")

    with pytest.raises(ImportError, match="broken"):
        load()
    assert gc.isenabled()
