"""One loaded replica for all tests, whose steps they can count, hold and break."""

import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deployments.diffusion import Rendered
from deployments.model_args import ModelArgs
from deployments.pass_memory import PassMemory
from deployments.schemas.images import ImagesResult
from deployments.schemas.text_to_image import TextToImageRequest
from deployments.text_to_image import TextToImageReplica
from tests.deployments.families import write_lightning

TINY_SD = "livepeer-ray/tiny-sd"
PATIENCE_S = 30.0
"""How long a held step waits for its test, so that a failed test does not hang the others."""


class ObservedReplica(TextToImageReplica):
    """The real replica on the tiny model, with a hand on its steps."""

    def __init__(self, *, args: ModelArgs) -> None:
        self.prompts: list[str] = []
        self.steps = 0
        self.stepped = threading.Event()
        self.go_on = threading.Event()
        self.failure: Exception | None = None
        self.failures = 0
        self.reset()
        super().__init__(args=args)

    def reset(self) -> None:
        """Forgets what was observed and lets all steps pass."""
        self.prompts.clear()
        self.steps = 0
        self.failure = None
        self.failures = 1_000
        self.stepped.clear()
        self.go_on.set()
        self._memory = PassMemory()

    def infer_together(
        self, requests: Sequence[TextToImageRequest], raise_if_cancelled: Callable[[], None]
    ) -> Sequence[Rendered]:
        """Infers, noting each step and holding it while `go_on` is not set."""
        self.prompts.extend(request.prompt for request in requests)

        def observed() -> None:
            self.steps += 1
            self.stepped.set()
            assert self.go_on.wait(PATIENCE_S)
            if self.failure is not None and self.failures:
                self.failures -= 1
                raise self.failure
            raise_if_cancelled()

        return super().infer_together(requests, observed)


def args(models_dir: Path, model_id: str = TINY_SD, **flags: Any) -> ModelArgs:
    return ModelArgs(pipeline="text-to-image", model_id=model_id, models_dir=models_dir, **flags)


def request(prompt: str = "a lighthouse", **parameters: Any) -> TextToImageRequest:
    """Returns a request that takes the tiny model a few milliseconds."""
    quick = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 1}
    return TextToImageRequest(prompt=prompt, **{**quick, **parameters})


def pixels(result: ImagesResult) -> list[NDArray[np.int16]]:
    """Decodes a result's images, signed so that they can be subtracted."""
    return [np.asarray(Image.open(io.BytesIO(file.data)), dtype=np.int16) for file in result.files]


@pytest.fixture(scope="session")
def loaded_replica(tiny_models_dir: Path) -> Iterator[ObservedReplica]:
    replica = ObservedReplica(args=args(tiny_models_dir))
    yield replica
    replica.close()


@pytest.fixture
def replica(loaded_replica: ObservedReplica) -> Iterator[ObservedReplica]:
    loaded_replica.reset()
    yield loaded_replica
    loaded_replica.reset()


@pytest.fixture(scope="session")
def lightning_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with what SDXL-Lightning is made of."""
    directory = tmp_path_factory.mktemp("lightning")
    write_lightning(directory)
    return directory


@pytest.fixture
def serve_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Captures the logger of Serve's replicas, which does not propagate to the root."""
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        yield caplog
    logger.removeHandler(caplog.handler)
