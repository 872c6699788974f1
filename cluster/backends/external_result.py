"""What a container answers, read into the results that the rest of the bridge knows.

The shapes are ai-runner's (runner/src/runner/routes/utils.py), with what Go's decoder lets pass:
other fields are ignored, and a missing one is zero where Go would send zero on. A container is
not believed: media must be the file that it claims to be, and everything has bounds.

All functions here block for as long as megabytes take, and raise ValueError for an answer that is
not the pipeline's.
"""

import base64
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cluster.errors import ReportedError
from deployments.errors import BadRequest
from deployments.image_input import decode_image
from deployments.png import SIGNATURE
from deployments.schemas.audio_to_text import AudioToTextResult
from deployments.schemas.audio_to_text import Chunk as SpokenChunk
from deployments.schemas.base import MediaFile, Request, Result
from deployments.schemas.image_to_text import ImageToTextResult
from deployments.schemas.image_to_video import ImageToVideoRequest, VideoResult
from deployments.schemas.images import MAX_IMAGES, Image, ImagesResult
from deployments.schemas.llm import Completion, LLMChunk, LLMResult, Usage
from deployments.schemas.segment_anything_2 import SegmentAnything2Result
from deployments.schemas.text_to_speech import TextToSpeechResult
from deployments.video import encode_mp4

MAX_ANSWER_BYTES = 300_000_000
"""The network's own limit for a file. Ten images of the largest size that refuse to be compressed
are 170 MB in base64; three masks of a large photograph are more, and are refused."""

MAX_VIDEO_PIXELS = 100_000_000
"""Of all frames, which are in memory at once with 3 bytes each: three times the largest video that
a request can ask for."""

MAX_NAME_CHARS = 200
"""Of ids and model names, which every line of a stream repeats."""

MAX_CHUNK_CHARS = 2_000
"""As in our own streams: JSON escapes a character in 12 bytes at most, a line has 48 KiB."""

NUMBERS = b"0123456789+-.eE[], naif"
"""What nested lists of numbers are written with, `nan` and `inf` included. Masks go into our
answer as they are, where a quotation mark would end the string."""


def _or(default: object) -> BeforeValidator:
    """Go's zero in place of null."""
    return BeforeValidator(lambda value: default if value is None else value)


Name = Annotated[str, BeforeValidator(lambda value: str(value or "")[:MAX_NAME_CHARS])]
Count = Annotated[int, _or(0), Field(ge=0, lt=2**63)]
Text = Annotated[str, _or("")]


class _Media(BaseModel):
    url: str
    seed: Annotated[int, _or(0), Field(ge=-(2**63), lt=2**63)] = 0
    nsfw: Annotated[bool, _or(False)] = False


class _Images(BaseModel):
    images: Annotated[list[_Media], Field(min_length=1, max_length=MAX_IMAGES)]


class _Video(BaseModel):
    frames: Annotated[list[Annotated[list[_Media], Field(min_length=1)]], Field(max_length=1)]


class _Url(BaseModel):
    url: str


class _Audio(BaseModel):
    audio: _Url


class _Chunk(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)  # which JSON, as Go reads it, does not have

    timestamp: tuple[float | None, float | None]
    text: str


class _Transcript(BaseModel):
    text: str
    chunks: Annotated[list[_Chunk], _or([])] = []


class _Masks(BaseModel):
    masks: str
    scores: str
    logits: str


class _Text(BaseModel):
    text: str


class _Usage(BaseModel):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class _Message(BaseModel):
    content: Text = ""


class _Choice(BaseModel):
    message: Annotated[_Message, _or({})] = _Message()
    delta: Annotated[_Message, _or({})] = _Message()
    finish_reason: Name = ""


class _Completion(BaseModel):
    error: Any = None
    """In a stream, in place of everything else."""
    id: Name = ""
    model: Name = ""
    created: Count = 0
    choices: Annotated[list[_Choice], _or([])] = []
    usage: Annotated[_Usage, _or({})] = _Usage()


def read_result(pipeline: str, request: Request, body: bytes | bytearray) -> Result:
    """Returns the result of a request that was not streamed.

    Args:
        pipeline: whose answer it is.
        request: what was asked for.
        body: the answer, JSON.

    Raises:
        ValueError: it is not what this pipeline answers.
    """
    return _READERS[pipeline](request, body)


def read_chunks(data: bytes, *, replica: str, compute_s: float) -> list[LLMChunk]:
    """Returns what one event of a streamed llm answer brings.

    Nothing for an event without text or end, more than one where the text is long.

    Args:
        data: of the event, JSON.
        replica: who sent it.
        compute_s: seconds since the request.

    Raises:
        ReportedError: the answer failed.
        ValueError: it is not a part of one.
    """
    answer = _Completion.model_validate_json(data)
    if answer.error is not None:
        raise ReportedError(str(answer.error)[:MAX_NAME_CHARS])
    if not answer.choices:
        return []
    (choice, *_) = answer.choices
    text = choice.delta.content
    pieces = [text[at : at + MAX_CHUNK_CHARS] for at in range(0, len(text), MAX_CHUNK_CHARS)]
    if not pieces and choice.finish_reason:
        pieces = [""]
    return [
        LLMChunk(
            replica=replica,
            compute_s=compute_s,
            completion=_completion(answer),
            text=piece,
            finish_reason=choice.finish_reason if number == len(pieces) else "",
            usage=_usage(answer),
        )
        for number, piece in enumerate(pieces, start=1)
    ]


def _images(_: Request, body: bytes | bytearray) -> Result:
    return ImagesResult(
        images=tuple(
            Image(file=_png(media.url), seed=media.seed, nsfw=media.nsfw)
            for media in _Images.model_validate_json(body).images
        )
    )


def _video(request: Request, body: bytes | bytearray) -> Result:
    """Frames, of which the network wants one file. Seed and nsfw are the first one's."""
    if not isinstance(request, ImageToVideoRequest):
        raise TypeError(f"{type(request).__name__} asks for no video")
    (frames,) = _Video.model_validate_json(body).frames
    pixels: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for frame in frames:
        try:
            pixels.append(np.asarray(decode_image(_png(frame.url).data)))
        except BadRequest as error:
            raise ValueError(f"frame {len(pixels)}: {error}") from None
        if pixels[0].size * len(pixels) > 3 * MAX_VIDEO_PIXELS:
            raise ValueError(f"its frames have more than {MAX_VIDEO_PIXELS} pixels")
    video = encode_mp4(np.stack(pixels), fps=request.fps)
    return VideoResult(video=video, seed=frames[0].seed, nsfw=frames[0].nsfw)


def _transcript(_: Request, body: bytes | bytearray) -> Result:
    answer = _Transcript.model_validate_json(body)
    return AudioToTextResult(
        text=answer.text,
        chunks=tuple(
            SpokenChunk(text=chunk.text, start_s=chunk.timestamp[0], end_s=chunk.timestamp[1])
            for chunk in answer.chunks
        ),
    )


def _masks(_: Request, body: bytes | bytearray) -> Result:
    answer = _Masks.model_validate_json(body)
    return SegmentAnything2Result(
        masks=_numbers(answer.masks),
        scores=_numbers(answer.scores),
        logits=_numbers(answer.logits),
    )


def _numbers(text: str) -> bytes:
    ascii_text = text.encode("ascii")
    if other := ascii_text.translate(None, NUMBERS):
        raise ValueError(f"nested lists of numbers hold {other[:20]!r}")
    return ascii_text


def _llm(_: Request, body: bytes | bytearray) -> Result:
    answer = _Completion.model_validate_json(body)
    if not answer.choices:
        raise ValueError("it has no choices")
    choice = answer.choices[0]
    return LLMResult(
        completion=_completion(answer),
        text=choice.message.content,
        finish_reason=choice.finish_reason,
        usage=_usage(answer),
    )


def _completion(answer: _Completion) -> Completion:
    return Completion(id=answer.id, model=answer.model, created_s=answer.created)


def _usage(answer: _Completion) -> Usage:
    return Usage(
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
    )


def _image_text(_: Request, body: bytes | bytearray) -> Result:
    return ImageToTextResult(text=_Text.model_validate_json(body).text)


def _speech(_: Request, body: bytes | bytearray) -> Result:
    data = _data(_Audio.model_validate_json(body).audio.url)
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("the audio is not a WAV file")
    return TextToSpeechResult(audio=MediaFile(data=data, media_type="audio/wav"))


def _png(url: str) -> MediaFile:
    data = _data(url)
    if not data.startswith(SIGNATURE):
        raise ValueError("the image is not a PNG file")
    return MediaFile(data=data, media_type="image/png")


def _data(url: str) -> bytes:
    head, comma, text = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise ValueError(f"media come as data urls in base64, not as {url[:40]!r}")
    return base64.b64decode(text, validate=True)


_READERS: dict[str, Callable[[Request, bytes | bytearray], Result]] = {
    "text-to-image": _images,
    "image-to-image": _images,
    "image-to-video": _video,
    "upscale": _images,
    "audio-to-text": _transcript,
    "segment-anything-2": _masks,
    "llm": _llm,
    "image-to-text": _image_text,
    "text-to-speech": _speech,
}
