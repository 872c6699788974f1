"""What an answer must look like: go-livepeer's rules (server/ai_http.go), and no slack.

The real orchestrator replies 200 to most wrong answers and then waits, stores an empty file
or hands null to the gateway. Here each of them is an `AnswerFault`.
"""

import re
from typing import Any

from cluster.loopback.content_type import ContentTypeError, parse_content_type
from cluster.loopback.documents import BadDocument, media_entries
from cluster.loopback.event_stream import MEDIA_TYPE as EVENT_STREAM
from cluster.loopback.go_json import loads
from cluster.loopback.jobs import Job, MediaAnswer, WorkerError
from cluster.loopback.multipart import MultipartError, Part, split_multipart
from cluster.loopback.pipelines import PIPELINES, Pipeline

ERROR_TYPE = "livepeer/ai-worker-error"

_MAX_FILES = 11
"""The default store keeps 12 files a request and the input is one of them (drivers/local.go)."""

_DISPOSITION = re.compile(r'attachment;\s*filename=(?:"([^"]*)"|(\S+))')
_STEM = re.compile(r"[0-9a-fA-F]{8}")


class AnswerFault(Exception):
    """An answer that the real orchestrator would mistreat; `status` is what the worker is told."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        """Takes the reason, for worker and caller alike."""
        super().__init__(reason)
        self.status = status


def check_stream(job: Job) -> None:
    """Checks that a job may be answered with an event stream.

    Raises:
        AnswerFault: it may not.
    """
    if job.pipeline not in PIPELINES or not PIPELINES[job.pipeline].streams:
        raise AnswerFault(
            f"Content-Type {EVENT_STREAM!r} for a job of {job.pipeline}, which has no streaming",
            status=415,
        )
    if not job.streamed:
        raise AnswerFault(
            "an event stream for a request that does not stream: the gateway cannot read it"
        )


def parse_answer(
    *, content_type: str, job: Job, body: bytes | bytearray
) -> MediaAnswer | WorkerError:
    """Returns what a worker answered, in one piece.

    Raises:
        AnswerFault: for anything but a well-formed result or error.
    """
    try:
        media_type, parameters = parse_content_type(content_type)
    except ContentTypeError as error:
        raise AnswerFault(str(error), status=415) from None
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
    if job.pipeline not in PIPELINES:
        raise AnswerFault(f"a result for {job.pipeline!r}, which has no route here")
    if job.streamed:
        raise AnswerFault(
            "multipart/mixed for a request that streams: the gateway would send no event"
        )
    try:
        parts = split_multipart(body, parameters["boundary"])
    except MultipartError as error:
        raise AnswerFault(str(error)) from None
    return _media_answer(PIPELINES[job.pipeline], parts)


def _media_answer(pipeline: Pipeline, parts: list[Part]) -> MediaAnswer:
    """Sorts the parts into the one document and the files, which must name each other."""
    documents: list[Any] = []
    files: dict[str, bytes] = {}
    for part in parts:
        kind = part.headers.get("content-type", "")
        if kind == "application/json":
            documents.append(_document(part))
        elif "content-disposition" in part.headers:
            name = _filename(part, pipeline)
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
        document = pipeline.answer.read(documents[0])
    except BadDocument as error:
        raise AnswerFault(f"document: {error}") from None
    entries = list(media_entries(document))
    urls = [entry["url"] for entry in entries]
    for url in urls:
        if url not in files:
            raise AnswerFault(f"url {url!r} names no file: an empty one would be stored")
        if urls.count(url) > 1:
            raise AnswerFault(f"url {url!r} stands in the document more than once")
    for name in files.keys() - set(urls):
        raise AnswerFault(f"file {name} is not named in the document")
    return MediaAnswer(
        document=document,
        entries=entries,
        files=files,
        media_type=pipeline.media.media_type if pipeline.media else "",
    )


def _document(part: Part) -> Any:
    try:
        return loads(part.data)
    except ValueError as error:
        raise AnswerFault(f"the document is not JSON: {error}") from None


def _filename(part: Part, pipeline: Pipeline) -> str:
    """Returns a file part's name, after checking everything about that part."""
    media = pipeline.media
    if media is None:
        raise AnswerFault(f"a file in an answer of {pipeline.name}, which is a document alone")
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
    if media.signature.match(part.data) is None:
        raise AnswerFault(f"file {name} does not start as {media.media_type} does")
    return name
