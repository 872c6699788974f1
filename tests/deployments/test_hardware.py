"""What is asked of NVML, and what becomes of its failures.

The library stands in for itself by name: without a GPU there is nothing that could run.
"""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.hardware import GPU, local_gpus

CARD, MIG = "GPU-0af7", "MIG-91b2"


class FakeNVMLError(Exception):
    """What a fake library raises."""


class FakeNVML:
    """pynvml as of a machine with two cards, the second of them cut into MIG instances."""

    NVMLError = FakeNVMLError

    def __init__(self, *, installed: bool = True, lost: str = "") -> None:
        self._installed, self._lost, self.open = installed, lost, 0

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name, as below
        if not self._installed:
            raise FakeNVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return (CARD, "GPU-77c1")[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in (CARD, MIG):
            raise FakeNVMLError("Not Found")
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, device: str) -> str:  # noqa: N802
        assert device == MIG
        return "GPU-77c1"

    def nvmlDeviceGetCudaComputeCapability(self, device: str) -> tuple[int, int]:  # noqa: N802
        if device == MIG:
            raise FakeNVMLError("Not Supported")
        return (9, 0)

    def nvmlDeviceGetMemoryInfo(self, device: str) -> Any:  # noqa: N802
        if device == self._lost:
            raise FakeNVMLError("GPU is lost")
        return SimpleNamespace(free=5, total=10 if device == MIG else 80)

    def nvmlDeviceGetUtilizationRates(self, device: str) -> Any:  # noqa: N802
        if device == MIG:
            raise FakeNVMLError("Not Supported")
        return SimpleNamespace(gpu=60, memory=20)

    def nvmlDeviceGetUUID(self, device: str) -> str:  # noqa: N802
        return device

    def nvmlDeviceGetName(self, device: str) -> str:  # noqa: N802
        return "NVIDIA H100 MIG 1g.10gb" if device == MIG else "NVIDIA H100"


def gpu(uuid: str, *, name: str = "NVIDIA H100", total: int = 80, busy: bool = True) -> GPU:
    return GPU(
        id=uuid,
        name=name,
        major=9,
        minor=0,
        memory_free_bytes=5,
        memory_total_bytes=total,
        compute_percent=60 if busy else 0,
        memory_percent=20 if busy else 0,
    )


def test_all_cards_of_a_machine() -> None:
    nvml = FakeNVML()
    assert local_gpus(nvml=nvml) == {"0": gpu(CARD), "1": gpu("GPU-77c1")}
    assert nvml.open == 0


def test_names_as_in_cuda_visible_devices() -> None:
    mig = gpu(MIG, name="NVIDIA H100 MIG 1g.10gb", total=10, busy=False)
    assert local_gpus(["1", CARD, MIG], nvml=FakeNVML()) == {
        "1": gpu("GPU-77c1"),
        CARD: gpu(CARD),
        MIG: mig,
    }


def test_a_card_that_cannot_be_read_does_not_hide_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nvml = FakeNVML(lost=CARD)
    assert local_gpus(["0", "1", "GPU-unknown"], nvml=nvml) == {"1": gpu("GPU-77c1")}
    assert "GPU 0 is not reported: GPU is lost" in caplog.text
    assert "GPU GPU-unknown is not reported: Not Found" in caplog.text
    assert nvml.open == 0


def test_a_machine_without_nvml_has_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert local_gpus(["0"], nvml=FakeNVML(installed=False)) == {}
    assert not caplog.text


def test_the_library_has_all_that_is_asked_of_it() -> None:
    import pynvml

    names = [name for name in vars(FakeNVML) if name.startswith("nvml")]
    assert all(callable(getattr(pynvml, name)) for name in names)
    # On a machine with GPUs this reads their facts; elsewhere there are none, and no error.
    assert all(card.memory_total_bytes > 0 for card in local_gpus().values())
