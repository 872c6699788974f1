"""The FastAPI application: ai-runner's routes for every pipeline of the registry.

Each of them stands at two addresses: at the root, where the body names the model, and below
`/<pipeline>/<model_id>/`, which is the base url of one model, as if a container of its own
served it. There its health, version and hardware are that model's alone.
"""

import inspect
from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from fastapi.security import HTTPBearer

from deployments.ingress import documents
from deployments.ingress.config import RUNNER_VERSION, ModelKey
from deployments.ingress.documents import body_name, operation_of
from deployments.ingress.errors import add_handlers
from deployments.ingress.parameters import form_signature, json_model
from deployments.ingress.route import guarded_route
from deployments.ingress.service import Service
from deployments.registry import PIPELINES, Pipeline

MAX_JSON_BYTES = 16 * 1024 * 1024
"""The longest chat (deployments/schemas/llm.py) with every character escaped."""

MAX_FIELDS_BYTES = 8 * 1024 * 1024
"""Of a form, beside its file: twice what its longest field may have."""

FORM_LIMITS: Any = {"max_files": 1, "max_fields": 100, "max_part_size": 5_000_000}
"""The last because a mask of segment-anything-2 is larger than Starlette's 1 MB."""

BASE = "{base:path}"
"""A model's id, which has a slash."""


def create_app(service: Service) -> FastAPI:
    """Returns the application over a service."""
    app = FastAPI(
        title=documents.TITLE,
        version=RUNNER_VERSION,
        description=documents.DESCRIPTION,
        separate_input_output_schemas=False,
        redirect_slashes=False,
    )
    add_handlers(app)
    for pipeline in PIPELINES.values():
        _add_pipeline(app, service, pipeline)
    _add_facts(app, service)
    return app


def _add_pipeline(app: FastAPI, service: Service, pipeline: Pipeline) -> None:
    endpoint = (
        _form_endpoint(service, pipeline) if pipeline.file else _json_endpoint(service, pipeline)
    )
    most = pipeline.max_file_bytes + MAX_FIELDS_BYTES if pipeline.file else MAX_JSON_BYTES
    root, own = f"/{pipeline.name}", f"/{pipeline.name}/{BASE}/{pipeline.name}"
    for path in (root, f"{root}/", own, f"{own}/"):
        app.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            name=pipeline.name,
            include_in_schema=path == root,
            dependencies=[Depends(HTTPBearer(auto_error=False))],
            route_class_override=guarded_route(service, max_body_bytes=most),
            form_limits=FORM_LIMITS,
            **operation_of(pipeline),
        )


def _form_endpoint(service: Service, pipeline: Pipeline) -> Callable[..., Any]:
    async def answer(*, request: Request, **parameters: Any) -> Response:
        return await service.answer(request, pipeline, parameters)

    asked = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    signature = inspect.Signature([asked, *form_signature(pipeline)])
    answer.__signature__ = signature  # type: ignore[attr-defined] # what FastAPI reads
    return answer


def _json_endpoint(service: Service, pipeline: Pipeline) -> Callable[..., Any]:
    async def answer(request: Request, parameters: Any) -> Response:
        return await service.answer(request, pipeline, parameters.model_dump())

    answer.__annotations__["parameters"] = json_model(pipeline, body_name(pipeline))
    return answer


def _add_facts(app: FastAPI, service: Service) -> None:
    """Adds what is asked about the models. It takes no slot, and health asks nobody."""

    async def health(request: Request) -> documents.HealthCheck:
        return documents.HealthCheck(status=service.health(_address(request)).value)

    async def version(request: Request) -> documents.Version:
        key = service.about(_address(request))
        return documents.Version(**key._asdict(), version=RUNNER_VERSION)

    async def hardware_info(request: Request) -> documents.HardwareInformation:
        address = _address(request)
        key, gpus = service.about(address), await service.gpus(address)
        facts = map(documents.compute_info, gpus)
        return documents.HardwareInformation(**key._asdict(), gpu_info=dict(enumerate(facts)))

    async def hardware_stats(request: Request) -> documents.HardwareStats:
        address = _address(request)
        key, gpus = service.about(address), await service.gpus(address)
        facts = map(documents.utilization_info, gpus)
        return documents.HardwareStats(**key._asdict(), gpu_stats=dict(enumerate(facts)))

    for path, endpoint in (
        ("/health", health),
        ("/hardware/info", hardware_info),
        ("/hardware/stats", hardware_stats),
        ("/version", version),
    ):
        own = f"/{{pipeline}}/{BASE}{path}"
        for each in (path, f"{path}/", own, f"{own}/"):
            app.add_api_route(
                each,
                endpoint,
                operation_id=endpoint.__name__,
                include_in_schema=each == path,
            )


def _address(request: Request) -> ModelKey | None:
    """The model whose base url it is; None at the root."""
    parameters = request.path_params
    return ModelKey(parameters["pipeline"], parameters["base"]) if parameters else None
