"""Answers of a runner read into results: media as they are, and nothing believed."""

import io
import json
import math
from typing import Any

import av
import numpy as np
import pytest

from cluster.backends import external_result
from cluster.backends.external_result import read_chunks, read_result
from cluster.errors import ReportedError
from deployments.png import png_bytes
from deployments.registry import PIPELINES
from deployments.schemas.audio_to_text import AudioToTextResult
from deployments.schemas.base import Request, Result
from deployments.schemas.image_to_text import ImageToTextResult
from deployments.schemas.image_to_video import VideoResult
from deployments.schemas.images import ImagesResult
from deployments.schemas.llm import LLMResult
from deployments.schemas.segment_anything_2 import SegmentAnything2Result
from tests.cluster.external.runner import PNG, chunk, data_url, images

WAV = b"RIFF\x00\x00\x00\x00WAVEfmt "
MINIMAL: dict[str, dict[str, Any]] = {
    "text-to-image": {"prompt": "a bear"},
    "image-to-image": {"prompt": "a bear"},
    "image-to-video": {"fps": 8},
    "upscale": {"prompt": "a bear"},
    "llm": {"messages": [{"role": "user", "content": "hi"}]},
    "text-to-speech": {"text": "hi"},
}


def request(pipeline: str) -> Request:
    spec = PIPELINES[pipeline]
    file = {spec.file: b"file"} if spec.file else {}
    return spec.request.parse({**MINIMAL.get(pipeline, {}), **file})


def read(pipeline: str, answer: Any) -> Result:
    return read_result(pipeline, request(pipeline), json.dumps(answer).encode())


def frame(shade: int, width: int = 64, height: int = 32) -> str:
    return data_url(png_bytes(np.full((height, width, 3), shade, dtype=np.uint8)))


def video(*urls: str) -> dict[str, Any]:
    first, *others = urls
    media = [{"url": first, "seed": 9, "nsfw": True}]
    return {"frames": [media + [{"url": url, "seed": 1, "nsfw": False} for url in others]]}


@pytest.mark.parametrize("pipeline", ["text-to-image", "image-to-image", "upscale"])
def test_images_are_the_containers_own_bytes(pipeline: str) -> None:
    answer = images(PNG, PNG + b"2")
    answer["images"][1]["nsfw"] = None
    result = read(pipeline, answer)
    assert isinstance(result, ImagesResult)
    assert [file.data for file in result.files] == [PNG, PNG + b"2"]
    assert [(image.seed, image.nsfw) for image in result.images] == [(7, False), (8, False)]


def test_frames_become_one_video_with_the_first_ones_seed() -> None:
    result = read("image-to-video", video(frame(0), frame(100), frame(200)))
    assert isinstance(result, VideoResult)
    assert (result.seed, result.nsfw) == (9, True)
    with av.open(io.BytesIO(result.video.data), mode="r") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (64, 32)
        assert stream.average_rate == 8
        shades = [shown.to_ndarray(format="gray").mean() for shown in container.decode(stream)]
    assert shades == pytest.approx([0, 100, 200], abs=20)


def test_transcripts_and_masks_and_texts() -> None:
    chunks = [{"text": " hello", "timestamp": [0.0, None]}]
    transcript = read("audio-to-text", {"text": " hello", "chunks": chunks})
    assert isinstance(transcript, AudioToTextResult)
    assert transcript.document([]) == {"text": " hello", "chunks": chunks}
    assert read("audio-to-text", {"text": "", "chunks": None}).document([])["chunks"] == []

    masks = {"masks": "[[[1.0, -3e-05, nan]]]", "scores": "[0.9]", "logits": "[[[inf]]]"}
    found = read("segment-anything-2", masks)
    assert isinstance(found, SegmentAnything2Result)
    assert json.loads(b"".join(found.document_json([]))) == masks

    text = read("image-to-text", {"text": "a bear", "more": 1})
    assert isinstance(text, ImageToTextResult)
    assert text.text == "a bear"


def test_speech_is_the_containers_own_bytes() -> None:
    result = read("text-to-speech", {"audio": {"url": data_url(WAV, "audio/wav")}})
    assert result.files[0].data == WAV
    assert result.files[0].media_type == "audio/wav"


def test_a_chat_answer() -> None:
    answer = chunk()
    answer["choices"][0] = {"message": {"content": "hello"}, "finish_reason": "tool_calls"}
    result = read("llm", answer)
    assert isinstance(result, LLMResult)
    document = result.document([])
    assert document["choices"][0]["message"]["content"] == "hello"
    assert document["choices"][0]["finish_reason"] == "tool_calls"
    assert document["usage"] == answer["usage"]
    assert document["created"] == 1_700_000_000


@pytest.mark.parametrize(
    ("pipeline", "answer"),
    [
        ("text-to-image", {"images": []}),
        ("text-to-image", images(*[PNG] * 11)),
        ("text-to-image", images(b"\xff\xd8\xff jpeg")),
        ("text-to-image", images(PNG, seed=2**63)),
        ("text-to-image", {"images": [{"url": "https://elsewhere.example/a.png"}]}),
        ("text-to-image", {"images": [{"url": data_url(PNG)[:-3] + "*=="}]}),
        ("text-to-image", ["images"]),
        ("image-to-video", {"frames": []}),
        ("image-to-video", {"frames": [[], []]}),
        ("image-to-video", video(data_url(PNG))),
        ("image-to-video", video(frame(1), frame(1, width=32))),
        ("image-to-video", video(frame(1, width=63))),
        ("audio-to-text", {"text": "x", "chunks": [{"text": "x", "timestamp": [0]}]}),
        ("audio-to-text", {"text": "x", "chunks": [{"text": "x", "timestamp": [0, math.nan]}]}),
        ("segment-anything-2", {"masks": "[\n]", "scores": "[]", "logits": "[]"}),
        ("segment-anything-2", {"masks": '"}', "scores": "[]", "logits": "[]"}),
        ("segment-anything-2", {"masks": "[é]", "scores": "[]", "logits": "[]"}),
        ("llm", {"choices": []}),
        ("image-to-text", {"text": None}),
        ("text-to-speech", {"audio": {"url": data_url(b"ID3 an mp3", "audio/wav")}}),
    ],
)
def test_what_is_no_answer_is_refused(pipeline: str, answer: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read(pipeline, answer)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[1]", b"\xff", b"[" * 10_000])
def test_what_is_nothing_is_refused(pipeline: str, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_result(pipeline, request(pipeline), body)


def test_frames_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_result, "MAX_VIDEO_PIXELS", 3 * 64 * 32)
    read("image-to-video", video(*[frame(1)] * 3))
    with pytest.raises(ValueError, match="pixels"):
        read("image-to-video", video(*[frame(1)] * 4))


def texts(event: Any) -> list[tuple[str, str]]:
    chunks = read_chunks(json.dumps(event).encode(), replica="there", compute_s=1.0)
    return [(chunk.text, chunk.finish_reason) for chunk in chunks]


def test_events_of_a_stream() -> None:
    assert texts(chunk("a")) == [("a", "")]
    assert texts(chunk("", "length")) == [("", "length")]
    assert texts(chunk()) == [], "a role alone is no token yet"
    assert texts({"choices": None}) == []
    assert texts({"choices": [{"delta": None, "finish_reason": "stop"}]}) == [("", "stop")]
    (first,) = read_chunks(json.dumps(chunk("a")).encode(), replica="there", compute_s=1.0)
    assert first.document() == chunk("a")


def test_a_long_event_is_split_and_ends_once() -> None:
    parts = texts(chunk("x" * 4_500, "stop"))
    assert [(len(text), reason) for text, reason in parts] == [
        (2000, ""),
        (2000, ""),
        (500, "stop"),
    ]


def test_an_error_in_a_stream_is_the_jobs() -> None:
    with pytest.raises(ReportedError, match="out of memory"):
        texts({"error": "out of memory"})
