"""What an answer must look like: go-livepeer's rules (server/ai_http.go), and no slack.

The real orchestrator replies 200 to most wrong answers and then waits, stores an empty file
or hands null to the gateway. Here each of them is an `AnswerFault`.
"""

import re
from typing import Any

from cluster.loopback.jobs import MediaAnswer, WorkerError
from cluster.loopback.multipart import MultipartError, Part, split_multipart
from cluster.loopback.pipelines import PIPELINES, BadDocument, Media, Pipeline, loads

ERROR_TYPE = "livepeer/ai-worker-error"

_MAX_FILES = 11
"""The default store keeps 12 files a request and the input is one of them (drivers/local.go)."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110 calls it so
_MEDIA_TYPE = re.compile(rf"\s*({_TOKEN}/{_TOKEN})\s*((?:;.*)?)")
_PARAMETER = re.compile(rf';\s*({_TOKEN})=(?:({_TOKEN})|"([ !#-\[\]-~]*)")\s*')
_DISPOSITION = re.compile(r'attachment;\s*filename=(?:"([^"]*)"|(\S+))')
_STEM = re.compile(r"[0-9a-fA-F]{8}")


class AnswerFault(Exception):
    """An answer that the real orchestrator would mistreat; `status` is what the worker is told."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        """Takes the reason, for worker and caller alike."""
        super().__init__(reason)
        self.status = status


def parse_answer(
    *, content_type: str, pipeline: str, body: bytes | bytearray
) -> MediaAnswer | WorkerError:
    """Returns what a worker answered.

    Raises:
        AnswerFault: for anything but a well-formed result or error.
    """
    media_type, parameters = _parse_content_type(content_type)
    if media_type == ERROR_TYPE:
        text = body.decode("utf-8", "replace")
        if not text.strip():
            raise AnswerFault("an error answer without a text")
        return WorkerError(text)
    if media_type != "multipart/mixed":
        raise AnswerFault(
            f"Content-Type {content_type!r}: neither multipart/mixed nor {ERROR_TYPE};"
            " the job would wait out its 15 minutes",
            status=415,
        )
    if not parameters.get("boundary"):
        raise AnswerFault("multipart/mixed without a boundary")
    if pipeline not in PIPELINES:
        raise AnswerFault(f"a result for {pipeline!r}, which has no route here")
    try:
        parts = split_multipart(body, parameters["boundary"])
    except MultipartError as error:
        raise AnswerFault(str(error)) from None
    return _media_answer(PIPELINES[pipeline], parts)


def _parse_content_type(value: str) -> tuple[str, dict[str, str]]:
    """Returns a media type in lower case and its parameters."""
    match = _MEDIA_TYPE.fullmatch(value)
    if match is None:
        raise AnswerFault(f"Content-Type {value!r} is not a media type", status=415)
    media_type, rest = match[1].lower(), match[2].strip()
    parameters: dict[str, str] = {}
    while rest:
        parameter = _PARAMETER.match(rest)
        if parameter is None or parameter[1].lower() in parameters:
            raise AnswerFault(f"Content-Type {value!r} has a malformed parameter", status=415)
        parameters[parameter[1].lower()] = parameter[2] or parameter[3] or ""
        rest = rest[parameter.end() :]
    return media_type, parameters


def _media_answer(pipeline: Pipeline, parts: list[Part]) -> MediaAnswer:
    """Sorts the parts into the one document and the files, which must name each other."""
    documents: list[Any] = []
    files: dict[str, bytes] = {}
    for part in parts:
        kind = part.headers.get("content-type", "")
        if kind == "application/json":
            documents.append(_document(part))
        elif "content-disposition" in part.headers:
            name = _filename(part, pipeline.media)
            if name in files:
                raise AnswerFault(f"two files named {name}")
            files[name] = part.data
        else:
            raise AnswerFault(
                f"a part of type {kind!r} without Content-Disposition: a file needs one, and the"
                " document's type must be exactly application/json or the result is null"
            )
    if len(documents) != 1:
        raise AnswerFault(f"{len(documents)} parts of type application/json, there must be one")
    if len(files) > _MAX_FILES:
        raise AnswerFault(f"{len(files)} files, the store keeps {_MAX_FILES}")
    try:
        entries = pipeline.entries(documents[0])
    except BadDocument as error:
        raise AnswerFault(f"document: {error}") from None
    urls = [entry["url"] for entry in entries]
    for url in urls:
        if url not in files:
            raise AnswerFault(f"url {url!r} names no file: an empty one would be stored")
        if urls.count(url) > 1:
            raise AnswerFault(f"url {url!r} stands in the document more than once")
    for name in files.keys() - set(urls):
        raise AnswerFault(f"file {name} is not named in the document")
    return MediaAnswer(
        document=documents[0],
        entries=entries,
        files=files,
        media_type=pipeline.media.media_type,
    )


def _document(part: Part) -> Any:
    try:
        return loads(part.data)
    except ValueError as error:
        raise AnswerFault(f"the document is not JSON: {error}") from None


def _filename(part: Part, media: Media) -> str:
    """Returns a file part's name, after checking everything about that part."""
    disposition = part.headers["content-disposition"]
    match = _DISPOSITION.fullmatch(disposition)
    if match is None:
        raise AnswerFault(f"Content-Disposition {disposition!r} is not 'attachment; filename=NAME'")
    name = match[1] or match[2] or ""
    stem = name.removesuffix(media.extension)
    if stem == name or _STEM.fullmatch(stem) is None:
        raise AnswerFault(f"file name {name!r} is not 8 hex digits and {media.extension}")
    kind = part.headers.get("content-type", "")
    if kind != media.media_type:
        raise AnswerFault(f"file {name} is of type {kind!r}, not {media.media_type}")
    if not part.data:
        raise AnswerFault(f"file {name} is empty")
    if not part.data.startswith(media.signature):
        raise AnswerFault(f"file {name} does not start as {media.media_type} does")
    return name
