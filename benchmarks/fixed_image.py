"""A text-to-image replica whose model takes no time: `benchmarks.fixed_image:build` for Serve.

Everything around the model is the real thing, from the files on disk to the encoder. The model
itself is one file, the picture with which it answers every request.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from ray import serve

from deployments.app import application
from deployments.diffusion import Rendered
from deployments.model_args import ModelArgs
from deployments.replica import Replica
from deployments.schemas.text_to_image import TextToImageRequest
from deployments.text_to_image import TextToImageReplica

PICTURE = "picture.npy"
"""In the model's directory: H x W x 3 pixels."""

COMMIT = "0" * 40


class FixedImageReplica(TextToImageReplica):
    """Answers every request with the same picture."""

    def load(self, snapshot: Path) -> None:
        """Reads the picture."""
        self._pixels: NDArray[np.uint8] = np.load(snapshot / PICTURE)[np.newaxis]

    def warm_up(self, request: TextToImageRequest) -> None:
        """Runs a request; there is no model to optimize."""
        Replica.warm_up(self, request)

    def share(self, request: TextToImageRequest) -> None:
        """Each request is answered alone."""

    def infer(
        self,
        request: TextToImageRequest,
        raise_if_cancelled: Callable[[], None],  # noqa: ARG002 (nothing here takes long)
    ) -> Rendered:
        """Returns the picture at once."""
        return Rendered(pixels=self._pixels, seeds=[request.seed or 0], nsfw=[False])


def build(args: ModelArgs) -> serve.Application:
    """Returns the application, as `deployments.app.build` does for real models."""
    return application(FixedImageReplica, args)


def write_model(models_dir: Path, model_id: str, pixels: NDArray[np.uint8]) -> None:
    """Writes such a model in the Hugging Face cache layout.

    Args:
        models_dir: the cache.
        model_id: `organisation/name`.
        pixels: the picture, H x W x 3.
    """
    model = models_dir / f"models--{model_id.replace('/', '--')}"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    np.save(snapshot / PICTURE, pixels)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
