"""The table of the callers' routes: what a request carries and what its answer must hold.

Another pipeline is one more line in `PIPELINES`. Parameter names and types are go-livepeer's
(ai/worker/runner.gen.go), the filled-in defaults are its gateway's (server/ai_process.go).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Never

from cluster.loopback.go_json import MAX_FLOAT32

CAPABILITIES = {
    27: "text-to-image",
    28: "image-to-image",
    29: "image-to-video",
    30: "upscale",
    31: "audio-to-text",
    32: "segment-anything-2",
    33: "llm",
    34: "image-to-text",
    35: "live-video-to-video",
    36: "text-to-speech",
    37: "byoc",
}
"""Every pipeline that a worker can advertise, by number (go-livepeer, core/capabilities.go)."""

_INT64 = range(-(2**63), 2**63)


class BadParameters(Exception):
    """A caller's request that is not what the route takes."""


class BadDocument(Exception):
    """A worker's JSON that is not what the pipeline answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """A kind of file that answers carry."""

    extension: str
    media_type: str
    signature: bytes
    """What such a file starts with."""


PNG = Media(extension=".png", media_type="image/png", signature=b"\x89PNG\r\n\x1a\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """One pipeline as callers see it."""

    name: str
    """The route is `POST /<name>`."""
    parameters: Mapping[str, type]
    """By JSON name: str, int, float or bool."""
    defaults: Mapping[str, Any]
    """What is sent to workers where the caller says nothing."""
    at_least: Mapping[str, int]
    """Numbers that are raised to this where the caller's are lower."""
    media: Media
    entries: Callable[[Any], list[dict[str, Any]]]
    """Returns those parts of an answer's document whose `url` names a file.

    Raises `BadDocument`.
    """


def decode_parameters(pipeline: Pipeline, body: bytes | bytearray) -> dict[str, Any]:
    """Returns a caller's parameters with the gateway's defaults filled in.

    Null means absent and unknown names are dropped, as Go's decoder does.

    Raises:
        BadParameters: naming the parameter.
    """
    try:
        given = loads(body)
    except ValueError as error:
        raise BadParameters(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise BadParameters("the body is not a JSON object")
    decoded = dict(pipeline.defaults)
    for name, kind in pipeline.parameters.items():
        value = given.get(name)
        if value is None:
            continue
        if not _fits(value, kind):
            raise BadParameters(f"{name}: {json.dumps(value)} is not of type {kind.__name__}")
        decoded[name] = max(value, pipeline.at_least.get(name, value))
    return decoded


def loads(text: bytes | bytearray | memoryview) -> Any:
    """Decodes JSON as strictly as Go: no NaN, no Infinity.

    Raises:
        ValueError: for anything else than one JSON value in UTF-8.
    """
    try:
        return json.loads(str(text, "utf-8"), parse_constant=_reject)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _reject(constant: str) -> Never:
    raise ValueError(f"{constant} is not JSON")


def _fits(value: Any, kind: type) -> bool:
    """Tells whether Go's decoder puts this value into a field of this kind."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= MAX_FLOAT32
    if kind is int:
        return isinstance(value, int) and value in _INT64
    return isinstance(value, kind)


def _images(document: Any) -> list[dict[str, Any]]:
    """Returns the entries of `{"images": [{"url", "seed", "nsfw"}]}`."""
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not images:
        raise BadDocument('"images" is not a list with at least one image')
    for index, image in enumerate(images):
        fields = image if isinstance(image, dict) else {}
        if not isinstance(fields.get("url"), str):
            raise BadDocument(f'images[{index}]: "url" is not a string')
        if not _fits(fields.get("seed"), int):
            raise BadDocument(
                f'images[{index}]: "seed" is not an int64: {json.dumps(fields.get("seed"))}'
            )
        if not isinstance(fields.get("nsfw"), bool):
            raise BadDocument(f'images[{index}]: "nsfw" is not true or false')
    return images


_ALL = (
    Pipeline(
        name="text-to-image",
        parameters={
            "guidance_scale": float,
            "height": int,
            "loras": str,
            "model_id": str,
            "negative_prompt": str,
            "num_images_per_prompt": int,
            "num_inference_steps": int,
            "prompt": str,
            "safety_check": bool,
            "seed": int,
            "width": int,
        },
        defaults={"prompt": "", "height": 512, "width": 512, "num_images_per_prompt": 1},
        at_least={"num_images_per_prompt": 1},
        media=PNG,
        entries=_images,
    ),
)

PIPELINES: dict[str, Pipeline] = {pipeline.name: pipeline for pipeline in _ALL}
"""By name."""
