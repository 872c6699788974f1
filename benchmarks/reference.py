"""What the reference does around a model, imitated: the path that ours is compared with.

For one picture ai-runner encodes a PNG (Pillow, level 6) and answers with JSON that holds it
as a data URL (runner/src/runner/routes/utils.py, `image_to_data_url`). The worker, written in
Go, decodes the JSON, the data URL and the PNG, encodes the PNG again and uploads that
(go-livepeer, ai/worker/b64.go, `ReadImageB64DataUrl`; server/ai_worker.go).

All of it runs here in one thread a job. It flatters the reference:

- the HTTP hop between the container and the worker, and Docker's network, are left out,
- so are FastAPI's validation of the response and the worker's copies into its multipart,
- jobs share no interpreter's event loop, where ai-runner encodes in its one event loop,
- Go's PNG coder and JSON decoder are stood in for by Pillow's and Python's. Pillow brings
  zlib-ng, which is faster than the zlib it replaces; where it was measured on the same picture
  Go's encoder took longer than Pillow's.
"""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from cluster.ai_models import ModelKey
from deployments.schemas.base import Chunk, Completed, MediaFile, Request, Result
from deployments.schemas.images import Image, ImagesResult

PNG_LEVEL = 6
"""Pillow's default, which the reference leaves alone, and Go's."""

DATA_URL_PREFIX = "data:image/png;base64,"


class ReferenceBackend:
    """A `cluster.backends.Backend` that answers every request with the same picture."""

    def __init__(self, *, pixels: NDArray[np.uint8], threads: int) -> None:
        """Takes the picture, H x W x 3, and how many jobs run at a time."""
        self._pixels = pixels
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="reference")

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:  # noqa: ARG002 (the protocol of all backends)
        """Does what the reference does outside the model."""
        began = time.perf_counter()
        data = await asyncio.get_running_loop().run_in_executor(
            self._threads, reference_path, self._pixels
        )
        image = Image(file=MediaFile(data=data, media_type="image/png"), seed=0, nsfw=False)
        return Completed(
            result=ImagesResult(images=(image,)),
            replica="imitation",
            compute_s=time.perf_counter() - began,
        )

    def stream(
        self, key: ModelKey, request: Request, *, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """Is never asked for: pictures are not streamed."""
        raise NotImplementedError(f"{key}: {request}")


def reference_path(pixels: NDArray[np.uint8]) -> bytes:
    """Takes one picture from the model's output to the bytes that are uploaded."""
    return worker_side(runner_side(pixels))


def runner_side(pixels: NDArray[np.uint8]) -> bytes:
    """Returns ai-runner's response body."""
    png = _png(PillowImage.fromarray(pixels))
    url = DATA_URL_PREFIX + base64.b64encode(png).decode()
    return json.dumps({"images": [{"url": url, "seed": 0, "nsfw": False}]}).encode()


def worker_side(body: bytes) -> bytes:
    """Returns the PNG file that the Go worker makes of that response."""
    url: str = json.loads(body)["images"][0]["url"]
    received = base64.b64decode(url.removeprefix(DATA_URL_PREFIX))
    with PillowImage.open(io.BytesIO(received)) as image:
        return _png(image)


def _png(image: PillowImage.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=PNG_LEVEL)
    return file.getvalue()
