"""A request of every pipeline, as a client sends it."""

import io
import json
from typing import Any

import aiohttp

FIELDS: dict[str, dict[str, Any]] = {
    "text-to-image": {"prompt": "a bear"},
    "image-to-image": {"prompt": "a bear"},
    "image-to-video": {},
    "upscale": {"prompt": "a bear"},
    "audio-to-text": {},
    "segment-anything-2": {},
    "llm": {"messages": [{"role": "user", "content": "Hello"}]},
    "image-to-text": {},
    "text-to-speech": {"text": "There you go."},
}

FILES = {
    "image-to-image": "image",
    "image-to-video": "image",
    "upscale": "image",
    "audio-to-text": "audio",
    "segment-anything-2": "image",
    "image-to-text": "image",
}


def body(pipeline: str, *, file: bytes = b"a file", **fields: Any) -> dict[str, Any]:
    """The keyword arguments of a POST."""
    fields = {**FIELDS[pipeline], **fields}
    if pipeline not in FILES:
        return {"json": fields}
    form = aiohttp.FormData()
    form.add_field(FILES[pipeline], io.BytesIO(file), filename="file")
    for name, value in fields.items():
        form.add_field(name, value if isinstance(value, str) else json.dumps(value))
    return {"data": form}
