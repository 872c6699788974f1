"""What makes the real orchestrator wait, store nothing or answer null is loud here."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from cluster.loopback import LoopbackOrchestrator
from tests.cluster.loopback.wire import (
    BOUNDARY,
    PNG,
    Caller,
    closed,
    file_part,
    images,
    json_part,
    part,
    registered,
    result_body,
)

NAME = "0a1b2c3d.png"
GOOD = result_body([(NAME, PNG)])


@dataclass(kw_only=True)
class Case:
    """A wrong answer, and what has to be said of it."""

    id: str
    says: str
    body: bytes = GOOD
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 400


def entry(**changed: Any) -> dict[str, Any]:
    """A document with one image, changed; `...` leaves a key out."""
    image = {"url": NAME, "seed": 1, "nsfw": False, **changed}
    return {"images": [{key: value for key, value in image.items() if value is not ...}]}


def with_document(document: object) -> bytes:
    """A body with one file and this document."""
    return closed(file_part(NAME), json_part(document))


MULTIPART = f"multipart/mixed; boundary={BOUNDARY}"
TWELVE = [(f"0000000{digit:x}.png", PNG) for digit in range(12)]

CASES = [
    # The headers.
    Case(id="no type", headers={"content_type": ""}, status=415, says="Content-Type ''"),
    Case(id="json", headers={"content_type": "application/json"}, status=415, says="15 minutes"),
    Case(
        id="event stream",
        headers={"content_type": "text/event-stream"},
        status=415,
        says="'text/event-stream'",
    ),
    Case(id="form", headers={"content_type": "multipart/form-data"}, status=415, says="form-data"),
    Case(
        id="malformed type",
        headers={"content_type": f"{MULTIPART}; x"},
        status=415,
        says="malformed parameter",
    ),
    Case(id="no boundary", headers={"content_type": "multipart/mixed"}, says="without a boundary"),
    Case(
        id="other boundary",
        headers={"content_type": "multipart/mixed; boundary=other"},
        says="does not start with its boundary",
    ),
    Case(id="other pipeline", headers={"pipeline": "upscale"}, says="Pipeline header 'upscale'"),
    Case(id="no pipeline", headers={"pipeline": ""}, says="Pipeline header ''"),
    Case(
        id="empty error",
        headers={"content_type": "livepeer/ai-worker-error"},
        body=b" ",
        says="without a text",
    ),
    # The multipart form.
    Case(id="empty", body=b"", says="does not start with its boundary"),
    Case(id="preamble", body=b"\r\n" + GOOD, says="does not start with its boundary"),
    Case(id="bare newlines", body=GOOD.replace(b"\r\n", b"\n"), says="does not start"),
    Case(id="no closing boundary", body=GOOD[:-4] + b"\r\n", says="unexpected EOF"),
    Case(id="cut off", body=GOOD[:60], says="unexpected EOF"),
    Case(id="epilogue", body=GOOD + b"x", says="after the closing boundary"),
    Case(id="no parts", body=closed(), says="does not start with its boundary"),
    Case(
        id="boundary goes on",
        body=GOOD.replace(f"--{BOUNDARY}\r\nContent-Type".encode(), f"--{BOUNDARY}x".encode()),
        says="something other than the boundary",
    ),
    Case(id="no headers", body=closed(part(b"{}")), says="part 1 has no headers"),
    Case(
        id="endless headers",
        body=closed(part(b"", x_filler="x" * 9000)),
        says="more than 8192 bytes",
    ),
    Case(
        id="header without a colon",
        body=GOOD.replace(b"Content-Type: image", b"Content-Type image"),
        says="a header that is none",
    ),
    Case(
        id="header twice",
        body=GOOD.replace(b"Content-Type: image/png", b"Content-Type: a\r\nContent-Type: b"),
        says="two headers Content-Type",
    ),
    # The document.
    Case(id="no document", body=closed(file_part(NAME)), says="0 parts of type application/json"),
    Case(
        id="two documents",
        body=closed(file_part(NAME), json_part(entry()), json_part(entry())),
        says="2 parts of type application/json",
    ),
    Case(
        id="document with charset",
        body=closed(file_part(NAME), json_part(entry(), "application/json; charset=utf-8")),
        says="exactly application/json",
    ),
    Case(id="part without a type", body=closed(part(b"x", x_a="b")), says="type ''"),
    Case(id="not json", body=with_document(b"{"), says="not JSON"),
    Case(id="not utf-8", body=with_document(b'"\xff"'), says="not JSON"),
    Case(id="too deep", body=with_document(b"[" * 100_000), says="not JSON"),
    Case(id="null", body=with_document(None), says="document: Input should be"),
    Case(id="a list", body=with_document([]), says="document: Input should be"),
    Case(id="no images", body=with_document({"images": []}), says="images: List"),
    Case(id="images of null", body=with_document({"images": [None]}), says="images[0]"),
    Case(id="no url", body=with_document(entry(url=...)), says="images[0].url"),
    Case(id="no seed", body=with_document(entry(seed=...)), says="images[0].seed"),
    Case(id="float seed", body=with_document(entry(seed=1.0)), says="valid integer: 1.0"),
    Case(id="string seed", body=with_document(entry(seed="1")), says='valid integer: "1"'),
    Case(id="huge seed", body=with_document(entry(seed=2**63)), says="images[0].seed"),
    Case(id="no nsfw", body=with_document(entry(nsfw=...)), says="images[0].nsfw"),
    Case(id="nsfw as a number", body=with_document(entry(nsfw=0)), says="images[0].nsfw"),
    # Files and document name each other.
    Case(
        id="url of no file",
        body=with_document(entry(url="ffffffff.png")),
        says="'ffffffff.png' names no file",
    ),
    Case(
        id="url with a slash",
        body=with_document(entry(url=f"/{NAME}")),
        says="names no file: an empty one would be stored",
    ),
    Case(id="no file", body=closed(json_part(entry())), says="names no file"),
    Case(
        id="url twice",
        body=with_document(images(NAME, NAME)),
        says="stands in the document more than once",
    ),
    Case(
        id="file not named",
        body=closed(file_part(NAME), file_part("ffffffff.png"), json_part(images(NAME))),
        says="ffffffff.png is not named",
    ),
    Case(
        id="name twice",
        body=closed(file_part(NAME), file_part(NAME), json_part(images(NAME))),
        says=f"two files named {NAME}",
    ),
    Case(id="twelve files", body=result_body(TWELVE), says="12 files"),
    # The files.
    Case(id="empty file", body=result_body([(NAME, b"")]), says="is empty"),
    Case(
        id="jpeg", body=result_body([(NAME, b"\xff\xd8\xff")]), says="does not start as image/png"
    ),
    Case(
        id="type of file",
        body=closed(file_part(NAME, content_type="image/jpeg"), json_part(entry())),
        says="'image/jpeg', not image/png",
    ),
    Case(
        id="inline file",
        body=GOOD.replace(b"attachment;", b"inline;"),
        says="is not 'attachment; filename=NAME'",
    ),
    Case(
        id="form file",
        body=GOOD.replace(b"attachment; ", b'form-data; name="a"; '),
        says="is not 'attachment; filename=NAME'",
    ),
    *(
        Case(id=f"name {name!r}", body=result_body([(name, PNG)]), says="is not 8 hex digits")
        for name in ("0a1b2c3.png", "0a1b2c3dd.png", "0a1b2c3g.png", "0a1b2c3d.mp4", "0a1b2c3d")
    ),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
async def test_a_wrong_answer_is_told_to_everybody(
    orchestrator: LoopbackOrchestrator, caller: Caller, case: Case
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()
        status, text = await worker.post(job.taskId, case.body, **case.headers)
        assert status == case.status
        assert case.says in text
        reply = await request
        assert reply.status == 500
        assert case.says in reply.error
        assert [(fault.task_id, case.says in fault.reason) for fault in orchestrator.faults] == [
            (job.taskId, True)
        ]
        # The slot is free again.
        again = caller.start()
        await worker.post((await worker.next_job()).taskId, GOOD)
        assert (await again).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"authorization": ""}, 401, id="no authorization"),
        pytest.param({"authorization": "livepeer-ai-worker-1.0"}, 401, id="other authorization"),
        pytest.param({"credentials": ""}, 401, id="no secret"),
        pytest.param({"credentials": "guess"}, 401, id="wrong secret"),
        pytest.param({"task_id": ""}, 400, id="no task"),
        pytest.param({"task_id": "0x0"}, 400, id="task of letters"),
        pytest.param({"task_id": "0.0"}, 400, id="fractional task"),
    ],
)
async def test_an_answer_of_a_stranger_or_to_no_job_leaves_the_job_alone(
    orchestrator: LoopbackOrchestrator, caller: Caller, headers: dict[str, str], status: int
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()
        post = {"task_id": str(job.taskId), **headers}
        assert (await worker.post(body=GOOD, **post))[0] == status
        assert len(orchestrator.faults) == 1
        assert (await caller.status())["jobs"]["open"] == 1
        assert (await worker.post(job.taskId, GOOD))[0] == 200
        assert (await request).status == 200


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(closed(json_part(entry()), file_part(NAME)), id="document first"),
        pytest.param(GOOD.replace(NAME.encode(), b'"%s"' % NAME.encode(), 1), id="quoted name"),
        pytest.param(GOOD[:-2], id="no last newline"),
        pytest.param(with_document(entry(seed=2**63 - 1, extra=1)), id="largest seed"),
        pytest.param(result_body(TWELVE[:11]), id="eleven files"),
        pytest.param(
            GOOD.replace(b"Content-Type: image", b"content-length: 1\r\ncontent-type:  image"),
            id="lower case headers",
        ),
    ],
)
async def test_what_the_real_one_takes_is_taken(
    orchestrator: LoopbackOrchestrator, caller: Caller, body: bytes
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()
        assert await worker.post(job.taskId, body) == (200, "OK")
        assert (await request).status == 200
    assert orchestrator.faults == []


async def test_a_post_that_breaks_off_fails_the_job(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()

        async def broken() -> Any:
            yield GOOD[:40]
            raise ConnectionAbortedError

        headers = {
            "Authorization": "Livepeer-AI-Worker-1.0",
            "Credentials": "s3cret & more",
            "TaskId": str(job.taskId),
            "Pipeline": "text-to-image",
            "Content-Type": MULTIPART,
        }
        with pytest.raises(aiohttp.ClientError):
            await worker.http.post(f"{worker.url}/aiResults", data=broken(), headers=headers)
        reply = await request
        assert reply.status == 500
        assert "the connection ended before the body did" in reply.error
    assert len(orchestrator.faults) == 1


async def test_of_repeated_headers_the_first_counts(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()
        assert await worker.post(job.taskId, GOOD, second_task_id="7") == (200, "OK")
        assert (await request).status == 200


async def test_bodies_are_bounded(
    orchestrator: LoopbackOrchestrator, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = await caller.generate_raw(b"x" * 1_000_001)
    assert reply == (413, "the body is larger than 1000000 bytes\n")
    monkeypatch.setattr("cluster.loopback.server.MAX_RESULT_BYTES", len(GOOD) - 1)
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()
        status, text = await worker.post(job.taskId, GOOD)
        assert status == 413
        assert text == f"the body is larger than {len(GOOD) - 1} bytes\n"
        assert (await request).status == 500


async def test_answers_at_the_same_moment_count_once(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()
        replies = await asyncio.gather(*(worker.post(job.taskId, GOOD) for _ in range(5)))
        assert set(replies) == {(200, "OK")}
        assert (await request).status == 200
    assert len(orchestrator.late) == 4
