"""The HTTP API on a bare uvicorn: `python -m benchmarks.bare_http MODELS_DIR PORT`.

The same FastAPI application and the same replica in one process, without Serve, its proxy and
the way between processes: what these cost is the difference.
"""

import argparse
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import uvicorn

from benchmarks.fixed_image import FixedImageReplica
from benchmarks.rig import HTTP_MODEL
from deployments.hardware import GPU
from deployments.ingress.app import create_app
from deployments.ingress.config import IngressConfig, ServedModel
from deployments.ingress.served import Seen
from deployments.ingress.service import Service
from deployments.model_args import ModelArgs
from deployments.schemas.base import Chunk, Request, Result
from deployments.schemas.text_to_image import TextToImageRequest


class InThisProcess:
    """Runs requests on a replica of this process; a `deployments.ingress.runner.Runner`."""

    def __init__(self, models_dir: Path) -> None:
        """Loads the model."""
        self._replica = FixedImageReplica(
            args=ModelArgs(
                pipeline=HTTP_MODEL.pipeline, model_id=HTTP_MODEL.model_id, models_dir=models_dir
            )
        )

    async def run(self, model: ServedModel, request: Request) -> Result:  # noqa: ARG002 (there is one)
        """Runs one request."""
        if not isinstance(request, TextToImageRequest):
            raise TypeError(request)
        return (await self._replica.run(request)).result

    def stream(self, model: ServedModel, request: Request) -> AsyncGenerator[Chunk, None]:
        """There is nothing to stream."""
        raise NotImplementedError

    async def gpus(self, model: ServedModel) -> Sequence[GPU]:  # noqa: ARG002 (as above)
        """There are none."""
        return ()


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(prog="benchmarks.bare_http")
    parser.add_argument("models_dir", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    model = ServedModel(
        pipeline=HTTP_MODEL.pipeline,
        model_id=HTTP_MODEL.model_id,
        app="",
        slots=HTTP_MODEL.ray.max_ongoing_requests,
        cold=False,
    )
    service = Service(InThisProcess(arguments.models_dir))
    service.configure(IngressConfig(models=(model,)))
    service.served.see({"": Seen(running=1)})
    uvicorn.run(create_app(service), port=arguments.port, log_config=None, access_log=False)


if __name__ == "__main__":
    main()
