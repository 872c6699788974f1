"""What the answers of each pipeline have to hold."""

from typing import Any

import pytest

from cluster.loopback import LoopbackOrchestrator
from tests.cluster.loopback.cases import (
    BY_NAME,
    COMPLETION,
    MP4_PART,
    NUMBERS,
    PNG_PART,
    TRANSCRIPT,
    USAGE,
    WAV_PART,
    start,
)
from tests.cluster.loopback.wire import (
    MP4,
    PNG,
    Caller,
    capabilities,
    document_body,
    file_part,
    images,
    registered,
)


def completion(**changed: Any) -> dict[str, Any]:
    """A completion whose choice is changed."""
    return {**COMPLETION, "choices": [{**COMPLETION["choices"][0], **changed}]}  # type: ignore[index]


def chunks(*timestamps: Any) -> dict[str, Any]:
    """A transcript with a chunk of this time."""
    return {"text": "a", "chunks": [{"timestamp": list(timestamps), "text": "a"}]}


def changed_mp4(data: bytes, name: str = "00000001.mp4", kind: str = "video/mp4") -> bytes:
    """A result of image-to-video with another file."""
    return document_body(images(name), file_part(name, data, kind))


TWO_MP4 = (MP4_PART, file_part("00000002.mp4", MP4, "video/mp4"))
MASKS = BY_NAME["segment-anything-2"].document
WRONG = [
    ("image-to-image", document_body({"text": "a"}), "images: Field required"),
    ("image-to-image", document_body(images("00000001.mp4"), MP4_PART), "and .png"),
    ("upscale", document_body(images("00000001.png")), "names no file"),
    ("image-to-video", document_body(images("00000001.png"), PNG_PART), "and .mp4"),
    ("image-to-video", changed_mp4(PNG), "does not start as video/mp4"),
    ("image-to-video", changed_mp4(b"ftyp" + MP4), "does not start as video/mp4"),
    ("image-to-video", changed_mp4(b""), "is empty"),
    ("image-to-video", changed_mp4(MP4, kind="image/png"), "not video/mp4"),
    (
        "image-to-video",
        document_body(images("00000001.mp4", "00000002.mp4"), *TWO_MP4),
        "at most 1 item",
    ),
    ("audio-to-text", document_body({"chunks": []}), "text: Field required"),
    ("audio-to-text", document_body({"text": "a"}), "chunks: Field required"),
    ("audio-to-text", document_body({"text": "a", "chunks": None}), "chunks: Input"),
    ("audio-to-text", document_body(chunks()), "chunks[0].timestamp"),
    ("audio-to-text", document_body(chunks(0)), "chunks[0].timestamp"),
    ("audio-to-text", document_body(chunks(0, "1")), "chunks[0].timestamp[1]"),
    ("audio-to-text", document_body({**TRANSCRIPT, "text": None}), "text: Input"),
    ("audio-to-text", document_body(TRANSCRIPT, WAV_PART), "a document alone"),
    ("segment-anything-2", document_body({**MASKS, "masks": [[1]]}), "masks: Input"),
    ("segment-anything-2", document_body({**MASKS, "scores": 0.5}), "scores: Input"),
    ("segment-anything-2", document_body({**MASKS, "logits": None}), "logits: Input"),
    ("image-to-text", document_body({}), "text: Field required"),
    ("image-to-text", document_body({"text": ["a"]}), "text: Input"),
    ("image-to-text", document_body("a cat"), "document: Input"),
    ("text-to-speech", document_body({"audio": "00000001.wav"}, WAV_PART), "audio: Input"),
    ("text-to-speech", document_body({"audio": {}}, WAV_PART), "audio.url: Field required"),
    ("text-to-speech", document_body({"audio": {"url": "00000001.wav"}}), "names no file"),
    (
        "text-to-speech",
        document_body(
            {"audio": {"url": "00000001.wav"}},
            file_part("00000001.wav", b"RIFF\0\0\0\0AVI ", "audio/wav"),
        ),
        "does not start as audio/wav",
    ),
    ("llm", document_body({**COMPLETION, "choices": []}), "choices: List"),
    ("llm", document_body({**COMPLETION, "created": 1.0}), "created: Input"),
    ("llm", document_body({**COMPLETION, "created": "1"}), "created: Input"),
    ("llm", document_body({**COMPLETION, "id": 1}), "id: Input"),
    ("llm", document_body({**COMPLETION, "model": None}), "model: Input"),
    ("llm", document_body({**COMPLETION, "usage": None}), "usage: Input"),
    ("llm", document_body({**COMPLETION, "usage": {**USAGE, "total_tokens": -1}}), "usage.total"),
    ("llm", document_body({**COMPLETION, "usage": {}}), "usage.prompt_tokens: Field required"),
    ("llm", document_body(completion(message=None)), "choices[0].message: Input"),
    ("llm", document_body(completion(message={"role": "a"})), "choices[0].message.content"),
    ("llm", document_body(completion(message={"content": "a"})), "choices[0].message.role"),
    ("llm", document_body(completion(finish_reason=None)), "choices[0].finish_reason"),
    ("llm", document_body(completion(finish_reason="")), "choices[0].finish_reason"),
    ("llm", document_body(completion(index="0")), "choices[0].index"),
]


@pytest.mark.parametrize(("pipeline", "body", "says"), WRONG)
async def test_a_wrong_answer_is_told_to_everybody(
    orchestrator: LoopbackOrchestrator, caller: Caller, pipeline: str, body: bytes, says: str
) -> None:
    case = BY_NAME[pipeline]
    async with registered(orchestrator, capabilities(capability=NUMBERS[pipeline])) as worker:
        request = start(caller, case)
        job = await worker.next_job()
        status, text = await worker.post(job.taskId, body, pipeline=pipeline)
        assert (status, says in text) == (400, True), text
        reply = await request
        assert (reply.status, says in reply.error) == (500, True)
        assert [fault.task_id for fault in orchestrator.faults] == [job.taskId]


@pytest.mark.parametrize(
    ("pipeline", "document"),
    [
        ("audio-to-text", {"text": "", "chunks": []}),
        ("audio-to-text", chunks(0.5, None)),
        ("llm", completion(finish_reason="length", message={"role": "assistant", "content": ""})),
    ],
)
async def test_other_answers_that_are_right(
    orchestrator: LoopbackOrchestrator, caller: Caller, pipeline: str, document: dict[str, Any]
) -> None:
    async with registered(orchestrator, capabilities(capability=NUMBERS[pipeline])) as worker:
        request = start(caller, BY_NAME[pipeline])
        job = await worker.next_job()
        await worker.post(job.taskId, document_body(document), pipeline=pipeline)
        assert (await request).document == document
    assert orchestrator.faults == []
