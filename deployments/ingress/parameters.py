"""The registry's requests in the runner API's form: what a client may send, and its types.

What the pydantic models of `deployments.schemas` bound stands in the document too, but is checked
by them and not by FastAPI: a value of the wrong type is answered with 422, as ai-runner does, and
one that nobody could serve with 400, of which gateways tell their caller the reason.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from fastapi import File, Form, UploadFile
from pydantic import BaseModel, ConfigDict, Field, create_model

from deployments.ingress.descriptions import DESCRIPTIONS
from deployments.registry import Pipeline

TYPES: Mapping[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool}
"""By JSON schema's names."""

BOUNDS = (
    *("minimum", "maximum", "exclusiveMinimum", "multipleOf"),
    *("minLength", "maxLength", "minItems", "maxItems"),
)

LARGEST = 2**53
"""From here on floats are not exact."""

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a pipeline."""

    name: str
    type: Any
    """Without bounds."""
    default: Any
    """`REQUIRED` where it has to be given; None where it may be absent."""
    document: dict[str, Any]
    """What else the OpenAPI document says of it."""


def parameters_of(pipeline: Pipeline) -> Sequence[Parameter]:
    """Returns what a client may send."""
    schema = pipeline.request.model_json_schema()
    required = schema.get("required", ())
    return [
        _parameter(pipeline, name, property_, required=name in required)
        for name, property_ in schema["properties"].items()
        # Requests of a pipeline with a word of its own for the model have both.
        if name == pipeline.model_field or name != "model_id"
    ]


def form_signature(pipeline: Pipeline) -> Sequence[inspect.Parameter]:
    """Returns the parameters of a function that FastAPI calls with a multipart form."""
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=Annotated[
                each.type, (File if each.name == pipeline.file else Form)(**each.document)
            ],
        )
        for each in parameters_of(pipeline)
    ]


def json_model(pipeline: Pipeline, name: str) -> type[BaseModel]:
    """Returns the model of a JSON body."""
    fields: dict[str, Any] = {
        each.name: (
            each.type,
            Field(default=... if each.default is REQUIRED else each.default, **each.document),
        )
        for each in parameters_of(pipeline)
    }
    config = ConfigDict(protected_namespaces=())
    model: type[BaseModel] = create_model(name, __config__=config, **fields)
    return model


def _parameter(
    pipeline: Pipeline, name: str, schema: Mapping[str, Any], *, required: bool
) -> Parameter:
    (one, *_) = [each for each in schema.get("anyOf", (schema,)) if each.get("type") != "null"]
    type_: Any
    if name == pipeline.file:
        type_ = UploadFile
        extra = {"format": "binary"}
    else:
        type_ = TYPES.get(one["type"]) or _unbounded(pipeline.request.model_fields[name].annotation)
        extra = {
            bound: one[bound]
            for bound in BOUNDS
            # FastAPI writes them as floats.
            if abs(one.get(bound, LARGEST)) < LARGEST
        }
    return Parameter(
        name=name,
        type=type_,
        default=schema.get("default", REQUIRED if required else None),
        document={
            "description": schema.get("description") or DESCRIPTIONS.get(name),
            "json_schema_extra": extra,
        },
    )


def _unbounded(annotation: Any) -> Any:
    """A type without its bounds, to any depth."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return type(arguments[0])
    if origin in (tuple, list):
        return list[_unbounded(arguments[0])]  # type: ignore[misc] # made at run time
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields: dict[str, Any] = {
            name: (_unbounded(field.annotation), ... if field.is_required() else field.default)
            for name, field in annotation.model_fields.items()
        }
        return create_model(annotation.__name__, **fields)
    return annotation
