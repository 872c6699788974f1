"""Every pipeline from its own route to a worker and back."""

import asyncio
import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.loopback import LoopbackOrchestrator
from cluster.loopback.pipelines import CAPABILITIES, PIPELINES
from tests.cluster.loopback.wire import (
    MODEL,
    MP4,
    PNG,
    WAV,
    Caller,
    Reply,
    capabilities,
    client_tls,
    document_body,
    file_part,
    images,
    registered,
)

FILE = bytes(range(256)) * 3 + b"\r\n--"
NUMBERS = {name: number for number, name in CAPABILITIES.items()}
MESSAGES = [{"role": "user", "content": "hello"}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COMPLETION = {
    "id": "chat-1",
    "model": MODEL,
    "created": 1_700_000_000,
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
    ],
    "usage": USAGE,
}
TRANSCRIPT = {"text": "a b", "chunks": [{"timestamp": [0, 1.5], "text": "a b"}]}
PNG_PART = file_part("00000001.png", PNG)
MP4_PART = file_part("00000001.mp4", MP4, "video/mp4")
WAV_PART = file_part("00000001.wav", WAV, "audio/wav")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pipeline: what a caller gives, what the worker gets, and what it answers."""

    pipeline: str
    fields: Sequence[tuple[str, str]] = ()
    body: Any = None
    """In place of a form."""
    sent: str
    """The request as the worker gets it."""
    document: dict[str, Any]
    files: tuple[bytes, ...] = ()
    data: bytes = b""
    """What the file of the answer holds."""


CASES = [
    Case(
        pipeline="image-to-image",
        fields=[
            ("prompt", "a <b>"),
            ("strength", "0.80"),
            ("guidance_scale", "2"),
            ("image_guidance_scale", "1.5e0"),
            ("loras", '{"a/b": 1.0}'),
            ("negative_prompt", ""),
            ("num_images_per_prompt", "0"),
            ("num_inference_steps", "20"),
            ("safety_check", "f"),
            ("seed", "-5"),
            ("surprise", "1"),
        ],
        sent='{"guidance_scale":2,"image":null,"image_guidance_scale":1.5,'
        r'"loras":"{\"a/b\": 1.0}","model_id":"acme/painter","negative_prompt":"",'
        r'"num_images_per_prompt":1,"num_inference_steps":20,"prompt":"a \u003cb\u003e",'
        '"safety_check":false,"seed":-5,"strength":0.8}',
        document=images("00000001.png"),
        files=(PNG_PART,),
        data=PNG,
    ),
    Case(
        pipeline="image-to-video",
        fields=[
            ("width", "1024"),
            ("height", "576"),
            ("fps", "8"),
            ("motion_bucket_id", "127"),
            ("noise_aug_strength", "0.02"),
            ("num_inference_steps", "25"),
            ("safety_check", "true"),
            ("seed", "1"),
            ("seed", "2"),
        ],
        sent='{"fps":8,"height":576,"image":null,"model_id":"acme/painter",'
        '"motion_bucket_id":127,"noise_aug_strength":0.02,"num_inference_steps":25,'
        '"safety_check":true,"seed":1,"width":1024}',
        document=images("00000001.mp4"),
        files=(MP4_PART,),
        data=MP4,
    ),
    Case(
        pipeline="upscale",
        sent='{"image":null,"model_id":"acme/painter","prompt":""}',
        document=images("00000001.png"),
        files=(PNG_PART,),
        data=PNG,
    ),
    Case(
        pipeline="audio-to-text",
        fields=[("return_timestamps", "word"), ("metadata", '{"duration":"12"}')],
        sent=r'{"audio":null,"metadata":"{\"duration\":\"12\"}","model_id":"acme/painter",'
        '"return_timestamps":"word"}',
        document=TRANSCRIPT,
    ),
    Case(
        pipeline="segment-anything-2",
        fields=[
            ("point_coords", "[[1,2]]"),
            ("point_labels", "[1]"),
            ("box", "[0,0,1,1]"),
            ("mask_input", "[[0]]"),
            ("multimask_output", "True"),
            ("return_logits", "1"),
            ("normalize_coords", "FALSE"),
        ],
        sent='{"box":"[0,0,1,1]","image":null,"mask_input":"[[0]]","model_id":"acme/painter",'
        '"multimask_output":true,"normalize_coords":false,"point_coords":"[[1,2]]",'
        '"point_labels":"[1]","return_logits":true}',
        document={"masks": "[[[1]]]", "scores": "[0.5]", "logits": "[[[0.1]]]"},
    ),
    Case(
        pipeline="image-to-text",
        fields=[("prompt", "what is it?")],
        sent='{"image":null,"model_id":"acme/painter","prompt":"what is it?"}',
        document={"text": "a cat"},
    ),
    Case(
        pipeline="llm",
        body={
            "messages": [{"role": "user", "content": "a & b", "name": "x"}, {"content": None}],
            "temperature": 0.7,
            "top_p": 1,
            "top_k": -1,
        },
        sent=r'{"max_tokens":256,"messages":[{"content":"a \u0026 b","role":"user"},'
        '{"content":"","role":""}],"model":"acme/painter","stream":false,"temperature":0.7,'
        '"top_k":-1,"top_p":1}',
        document=COMPLETION,
    ),
    Case(
        pipeline="text-to-speech",
        body={"text": "", "description": "a calm voice"},
        sent='{"description":"a calm voice","model_id":"acme/painter","text":""}',
        document={"audio": {"url": "00000001.wav"}},
        files=(WAV_PART,),
        data=WAV,
    ),
]
BY_NAME = {case.pipeline: case for case in CASES}


def start(caller: Caller, case: Case) -> asyncio.Task[Reply]:
    """Posts a case's request in the background."""
    if case.body is not None:
        return asyncio.create_task(caller.generate(case.body, pipeline=case.pipeline))
    field = PIPELINES[case.pipeline].file
    return asyncio.create_task(caller.upload(case.pipeline, FILE, case.fields, field=field))


def test_the_table_is_the_networks_and_not_this_workers() -> None:
    assert set(PIPELINES) == set(CAPABILITIES.values()) - {"live-video-to-video", "byoc"}
    assert set(BY_NAME) == set(PIPELINES) - {"text-to-image"}
    code = "import cluster.loopback, sys; sys.exit('deployments.registry' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.pipeline) for case in CASES])
async def test_a_job_of_each_pipeline_is_answered(
    orchestrator: LoopbackOrchestrator, caller: Caller, case: Case
) -> None:
    advertised = capabilities(capability=NUMBERS[case.pipeline])
    async with registered(orchestrator, advertised) as worker:
        request = start(caller, case)
        job = await worker.next_job()
        assert job.AIJobData.pipeline == case.pipeline
        envelope = job.AIJobData.requestData.decode()
        url = envelope.removeprefix('{"input_url":"').partition('"')[0]
        assert envelope == f'{{"input_url":"{url}","request":{case.sent}}}'
        if PIPELINES[case.pipeline].file:
            # From the orchestrator itself, under the certificate that the worker trusts.
            assert url.startswith(f"{orchestrator.url}/stream/")
            async with worker.http.get(url, ssl=client_tls(orchestrator)) as download:
                assert (download.status, await download.read()) == (200, FILE)
        else:
            assert url == ""
        body = document_body(case.document, *case.files)
        assert await worker.post(job.taskId, body, pipeline=case.pipeline) == (200, "OK")
        reply = await request
        assert (reply.status, reply.task_id) == (200, "0")
        if url:
            assert (await caller.get(url))[0] == 404
    assert orchestrator.faults == []
    if not case.files:
        assert reply.document == case.document
        return
    entry = reply.document.get("audio") or reply.document["images"][0]
    name = (case.document.get("audio") or case.document["images"][0])["url"]
    assert entry["url"].startswith(f"{orchestrator.url}/stream/")
    assert entry["url"].endswith(f"/{name}")
    assert await caller.get(entry["url"]) == (200, case.data)


async def test_callers_get_the_fields_that_a_gateway_has(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator, capabilities(capability=NUMBERS["llm"])) as worker:
        request = start(caller, BY_NAME["llm"])
        body = document_body({**COMPLETION, "system_fingerprint": "x"})
        await worker.post((await worker.next_job()).taskId, body, pipeline="llm")
        assert (await request).document == COMPLETION


def form(*parts: str) -> bytes:
    """A form of parts, each from its first header on."""
    return "".join(f"--b\r\n{part}\r\n" for part in parts).encode() + b"--b--\r\n"


IMAGE = 'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\nx'
FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        pytest.param("application/json", b"{}", "is not multipart/form-data", id="json"),
        pytest.param("multipart/form-data", form(IMAGE), "with a boundary", id="no boundary"),
        pytest.param("multipart/mixed; boundary=b", form(IMAGE), "is not multipart", id="mixed"),
        pytest.param(";", form(IMAGE), "is not a media type", id="no type"),
        pytest.param(FORM, b"", "does not start with its boundary", id="empty"),
        pytest.param(FORM, form(IMAGE)[:-6], "unexpected EOF", id="cut off"),
        pytest.param(FORM, form("a: b\r\n\r\nx"), "without Content-Disposition", id="no name"),
        pytest.param(
            FORM,
            form(IMAGE.replace("form-data", "attachment")),
            "without Content-Disposition",
            id="attachment",
        ),
        pytest.param(FORM, form(IMAGE.replace("image", "audio")), "image: must", id="other field"),
        pytest.param(
            FORM, form(IMAGE.replace('; filename="a"', "")), "image: must", id="file as text"
        ),
    ],
)
async def test_a_bad_form_is_refused(
    orchestrator: LoopbackOrchestrator, caller: Caller, content_type: str, body: bytes, says: str
) -> None:
    async with registered(orchestrator, capabilities(capability=NUMBERS["upscale"])):
        reply = await caller.post_form("upscale", body, content_type)
        assert reply.status == 400
        assert says in reply.error
        assert (await caller.status())["jobs"]["handed_out"] == 0


@pytest.mark.parametrize(
    ("pipeline", "given", "named"),
    [
        ("image-to-image", ("seed", "1.0"), 'seed: "1.0"'),
        ("image-to-image", ("seed", ""), 'seed: ""'),
        ("image-to-image", ("seed", str(2**63)), "seed"),
        ("image-to-image", ("strength", "nan"), "strength"),
        ("image-to-image", ("strength", "1e39"), "strength"),
        ("image-to-image", ("strength", "1e999"), "strength"),
        ("image-to-image", ("safety_check", "yes"), "safety_check"),
        ("image-to-video", ("fps", "8fps"), "fps"),
        ("text-to-speech", {}, "text: must be given"),
        ("text-to-speech", {"text": 1}, "text"),
        ("llm", {}, "messages: must be given"),
        ("llm", {"messages": None}, "messages: must be given"),
        ("llm", {"messages": []}, "messages: []"),
        ("llm", {"messages": "hello"}, 'messages: "hello"'),
        ("llm", {"messages": ["hello"]}, 'messages[0]: "hello"'),
        ("llm", {"messages": [*MESSAGES, {"content": 1}]}, "messages[1].content: 1"),
        ("llm", {"messages": [{"role": []}]}, "messages[0].role"),
        ("llm", {"messages": MESSAGES, "stream": "yes"}, "stream"),
        ("llm", {"messages": MESSAGES, "top_k": 1.0}, "top_k"),
        ("llm", {"messages": MESSAGES, "model": 1}, "model"),
    ],
)
async def test_a_bad_parameter_is_named(
    orchestrator: LoopbackOrchestrator,
    caller: Caller,
    pipeline: str,
    given: tuple[str, str] | dict[str, Any],
    named: str,
) -> None:
    async with registered(orchestrator, capabilities(capability=NUMBERS[pipeline])):
        if isinstance(given, tuple):
            reply = await caller.upload(pipeline, FILE, [given])
        else:
            reply = await caller.generate(given, pipeline=pipeline)
        assert reply.status == 400
        assert reply.error.startswith(named)
        assert (await caller.status())["jobs"]["handed_out"] == 0


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


async def test_uploads_are_bounded_and_larger_than_other_requests(
    orchestrator: LoopbackOrchestrator, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = bytes(2_000_000)
    async with registered(orchestrator, capabilities(capability=NUMBERS["upscale"])) as worker:
        request = asyncio.create_task(caller.upload("upscale", large))
        job = await worker.next_job()
        url = job.AIJobData.requestData.decode().split('"')[3]
        assert await caller.get(url) == (200, large)
        await worker.post_error(job.taskId, "enough")
        await request
    monkeypatch.setattr("cluster.loopback.server.MAX_UPLOAD_BYTES", len(large) - 1)
    async with caller.http.post(f"{caller.url}/upscale", data=io.BytesIO(large)) as refused:
        assert refused.status == 413
        assert await refused.text() == "the body is larger than 1999999 bytes\n"


async def test_an_upload_stays_as_long_as_its_job(
    orchestrator: LoopbackOrchestrator, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.loopback.store.MAX_STORED_BYTES", 1)
    advertised = capabilities({MODEL: 2}, capability=NUMBERS["upscale"])
    case = BY_NAME["upscale"]
    async with registered(orchestrator, advertised) as worker:
        first, second = start(caller, case), start(caller, case)
        jobs = [await worker.next_job(), await worker.next_job()]
        urls = [job.AIJobData.requestData.decode().split('"')[3] for job in jobs]
        assert urls[0] != urls[1]
        body = document_body(case.document, *case.files)
        await worker.post(jobs[0].taskId, body, pipeline="upscale")
        await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        assert [(await caller.get(url))[0] for url in urls] == [404, 200]
        await worker.post(jobs[1].taskId, body, pipeline="upscale")
        assert [(await request).status for request in (first, second)] == [200, 200]
