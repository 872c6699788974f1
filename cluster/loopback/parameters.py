"""Callers' requests: JSON or an upload with form fields, decoded as the gateway decodes them.

JSON goes through Go's encoding/json (null means absent, unknown names are dropped), forms
through oapi-codegen's BindMultipart (server/utils.go): of repeated fields the first counts, a
part with a file name is a file and any other a text, which Go's strconv reads.

Two things that the real gateway does to uploads are left to the worker here: it cannot price a
picture that it cannot open, and it measures the duration of audio, which it sends as `metadata`.
"""

import json
import math
import re
from dataclasses import dataclass
from email.message import Message
from typing import Any

from cluster.loopback.content_type import ContentTypeError, parse_content_type
from cluster.loopback.go_json import INT64, MAX_FLOAT32, loads
from cluster.loopback.multipart import MultipartError, Part, split_multipart
from cluster.loopback.pipelines import Messages, Pipeline

_INTEGER = re.compile(r"[+-]?[0-9]{1,30}", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("0", "f", "F", "false", "False", "FALSE"), False),
}
_SHOWN = 100  # characters of a wrong value


class BadParameters(Exception):
    """A caller's request that is not what the route takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a caller gave."""

    parameters: dict[str, Any]
    """With the gateway's defaults filled in, and None for the file."""
    file: bytes | None
    """The upload; None where the pipeline takes none."""


def decode(pipeline: Pipeline, *, content_type: str, body: bytes | bytearray) -> Given:
    """Returns what a request gives.

    Raises:
        BadParameters: naming the parameter.
    """
    file: bytes | None = None
    if pipeline.file:
        fields, file = _form(pipeline, content_type, body)
    else:
        fields = _json(pipeline, body)
    parameters = {**pipeline.defaults, **fields}
    for name, least in pipeline.at_least.items():
        parameters[name] = max(parameters[name], least)
    for name in sorted(pipeline.required - parameters.keys()):
        raise BadParameters(f"{name}: must be given")
    if pipeline.file:
        parameters[pipeline.file] = None
    return Given(parameters=parameters, file=file)


def _json(pipeline: Pipeline, body: bytes | bytearray) -> dict[str, Any]:
    try:
        given = loads(body)
    except ValueError as error:
        raise BadParameters(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise BadParameters("the body is not a JSON object")
    fields = {}
    for name, kind in pipeline.parameters.items():
        value = given.get(name)
        if value is None:
            continue
        if kind is Messages:
            value = _messages(name, value)
        elif not _fits(value, kind):
            raise BadParameters(f"{name}: {_shown(value)} is not of type {kind.__name__}")
        fields[name] = value
    return fields


def _fits(value: Any, kind: type) -> bool:
    """Tells whether Go's decoder puts this value into a field of this kind."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= MAX_FLOAT32
    if kind is int:
        return isinstance(value, int) and value in INT64
    return isinstance(value, kind)


def _messages(name: str, value: Any) -> list[dict[str, str]]:
    """Returns a chat as Go marshals it: both fields of each message, empty where not given."""
    if not isinstance(value, list) or not value:
        raise BadParameters(f"{name}: {_shown(value)} is not a list with at least one message")
    messages = []
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise BadParameters(f"{name}[{index}]: {_shown(entry)} is not an object")
        message = {}
        for key in ("role", "content"):
            message[key] = "" if entry.get(key) is None else entry[key]
            if not isinstance(message[key], str):
                raise BadParameters(
                    f"{name}[{index}].{key}: {_shown(message[key])} is not a string"
                )
        messages.append(message)
    return messages


def _form(
    pipeline: Pipeline, content_type: str, body: bytes | bytearray
) -> tuple[dict[str, Any], bytes]:
    """Returns the fields and the upload of a form."""
    texts: dict[str, Part] = {}
    files: dict[str, Part] = {}
    for part in _form_parts(content_type, body):
        disposition = Message()
        disposition["Content-Disposition"] = part.headers.get("content-disposition", "")
        name = disposition.get_param("name", header="content-disposition")
        if disposition.get_content_disposition() != "form-data" or not isinstance(name, str):
            raise BadParameters(
                'a part of the form without Content-Disposition: form-data; name="…"'
            )
        (texts if disposition.get_filename() is None else files).setdefault(name, part)
    if pipeline.file not in files:
        raise BadParameters(f"{pipeline.file}: must be given, as a file of the form")
    fields = {
        name: _text(name, kind, texts[name].data)
        for name, kind in pipeline.parameters.items()
        if name in texts
    }
    return fields, files[pipeline.file].data


def _form_parts(content_type: str, body: bytes | bytearray) -> list[Part]:
    try:
        media_type, parameters = parse_content_type(content_type)
        if media_type != "multipart/form-data" or not parameters.get("boundary"):
            raise BadParameters(
                f"Content-Type {content_type!r} is not multipart/form-data with a boundary"
            )
        return split_multipart(body, parameters["boundary"])
    except (ContentTypeError, MultipartError) as error:
        raise BadParameters(f"the form: {error}") from None


def _text(name: str, kind: type, data: bytes) -> Any:
    """Returns a form field as a value of its kind."""
    text = data.decode("utf-8", "replace")
    value: Any = None
    if kind is str:
        value = text
    elif kind is bool:
        value = _BOOLEANS.get(text)
    elif kind is int and _INTEGER.fullmatch(text) and int(text) in INT64:
        value = int(text)
    elif kind is float and _FLOAT.fullmatch(text):
        number = float(text)
        value = number if math.isfinite(number) and abs(number) <= MAX_FLOAT32 else None
    if value is None:
        raise BadParameters(f"{name}: {_shown(text)} is not of type {kind.__name__}")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value)[:_SHOWN]
