"""Jobs from a caller to a worker and back."""

import asyncio
import json
from typing import Any

import grpc
import httpx2
import pytest

from cluster.loopback import JobFailed, LoopbackOrchestrator
from cluster.loopback.ai_results import AUTHORIZATION
from tests.cluster.loopback.wire import (
    BOUNDARY,
    MODEL,
    PNG,
    SECRET,
    Caller,
    WireWorker,
    calling,
    capabilities,
    client_tls,
    registered,
    result_body,
)

FILES = [("0a1b2c3d.png", PNG + b"1"), ("ffffffff.png", PNG + b"\r\n--a-boundar")]


async def in_use(caller: Caller) -> list[int]:
    """Slots in use, worker by worker."""
    status = await caller.status()
    return [worker["capacity"]["text-to-image"][MODEL]["in_use"] for worker in status["workers"]]


async def test_a_job_is_answered_and_its_images_downloaded(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()
        assert job.taskId == 0
        assert job.AIJobData.pipeline == "text-to-image"
        assert await in_use(caller) == [1]
        assert await worker.post(job.taskId, result_body(FILES)) == (200, "OK")
        reply = await request
        assert (reply.status, reply.task_id) == (200, "0")
        assert await in_use(caller) == [0]
    images = reply.document["images"]
    assert [(image["seed"], image["nsfw"]) for image in images] == [(7, False), (8, False)]
    for image, (name, data) in zip(images, FILES, strict=True):
        assert image["url"].startswith(f"{orchestrator.url}/stream/")
        assert image["url"].endswith(f"/{name}")
        assert await caller.get(image["url"]) == (200, data)
    assert (await caller.get(images[0]["url"].replace(FILES[0][0], "1.png")))[0] == 404
    status = await caller.status()
    assert status["jobs"] == {"handed_out": 1, "answered": 1, "open": 0}
    assert (orchestrator.faults, orchestrator.late) == ([], [])


async def test_answers_may_come_over_http2(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with (
        registered(orchestrator) as worker,
        httpx2.AsyncClient(http2=True, verify=client_tls(orchestrator)) as http,
    ):
        request = caller.start()
        job = await worker.next_job()
        reply = await http.post(
            f"{orchestrator.url}/aiResults",
            content=result_body(FILES),
            headers={
                "Authorization": AUTHORIZATION,
                "Credentials": SECRET,
                "TaskId": str(job.taskId),
                "Pipeline": "text-to-image",
                "Content-Type": f'Multipart/Mixed; boundary="{BOUNDARY}"',
            },
        )
        assert (reply.http_version, reply.status_code) == ("HTTP/2", 200)
        assert (await request).status == 200
    assert orchestrator.faults == []


async def test_a_large_answer_passes(orchestrator: LoopbackOrchestrator, caller: Caller) -> None:
    data = PNG + bytes(range(256)) * 120_000
    async with registered(orchestrator) as worker:
        request = caller.start()
        job = await worker.next_job()
        assert await worker.post(job.taskId, result_body([("00000000.png", data)])) == (200, "OK")
        url = (await request).document["images"][0]["url"]
        assert await caller.get(url) == (200, data)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (
            {"prompt": "a <b> & \u2028 caf\u00e9"},
            r'{"height":512,"model_id":"acme/painter","num_images_per_prompt":1,'
            r'"prompt":"a \u003cb\u003e \u0026 \u2028 café","width":512}',
        ),
        (
            {
                "prompt": "p",
                "guidance_scale": 2.0,
                "height": 64,
                "width": 128,
                "num_images_per_prompt": 0,
                "seed": -1,
                "safety_check": False,
                "negative_prompt": "",
                "loras": None,
                "surprise": 1,
            },
            '{"guidance_scale":2,"height":64,"model_id":"acme/painter","negative_prompt":"",'
            '"num_images_per_prompt":1,"prompt":"p","safety_check":false,"seed":-1,"width":128}',
        ),
        (
            {"guidance_scale": 7.123456789, "num_inference_steps": 4},
            '{"guidance_scale":7.123457,"height":512,"model_id":"acme/painter",'
            '"num_images_per_prompt":1,"num_inference_steps":4,"prompt":"","width":512}',
        ),
    ],
    ids=["escapes", "types", "no prompt"],
)
async def test_the_request_is_marshalled_as_go_does(
    orchestrator: LoopbackOrchestrator, caller: Caller, given: dict[str, Any], sent: str
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start(given)
        job = await worker.next_job()
        assert job.AIJobData.requestData.decode() == f'{{"input_url":"","request":{sent}}}'
        await worker.post_error(job.taskId, "enough")
        await request


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"surprise": NaN}', "NaN is not JSON"),
        ({"prompt": 1}, "prompt"),
        ({"height": 64.0}, "height"),
        ({"height": True}, "height"),
        ({"seed": 2**63}, "seed"),
        ({"guidance_scale": "7"}, "guidance_scale"),
        ({"guidance_scale": 1e39}, "guidance_scale"),
        ({"safety_check": 1}, "safety_check"),
    ],
)
async def test_a_bad_request_names_the_parameter(
    orchestrator: LoopbackOrchestrator, caller: Caller, body: object, named: str
) -> None:
    async with registered(orchestrator):
        reply = await caller.generate(body)
        assert reply.status == 400
        assert named in reply.error
        assert (await caller.status())["jobs"]["handed_out"] == 0


async def test_the_model_is_filled_in_only_where_there_is_no_choice(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    assert (await caller.generate({"prompt": "p"})).status == 503
    async with (
        registered(orchestrator, capabilities({"acme/a": 1, "acme/none": 0})) as worker,
    ):
        request = caller.start({"prompt": "p"})
        await worker.post((await worker.next_job()).taskId, result_body(FILES))
        assert (await request).status == 200
        async with registered(orchestrator, capabilities({"acme/a": 1, "acme/b": 1})):
            reply = await caller.generate({"prompt": "p"})
            assert reply.status == 400
            assert reply.error == "model_id: name one of acme/a, acme/b"


async def test_the_first_worker_that_fits_is_chosen(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with (
        registered(orchestrator, capabilities({MODEL: 2})) as first,
        registered(orchestrator, capabilities({MODEL: 1})) as second,
    ):
        requests = []
        for worker, expected in ((first, [1, 0]), (first, [2, 0]), (second, [2, 1])):
            requests.append(caller.start())
            await worker.next_job()
            assert await in_use(caller) == expected
        refused = await caller.generate()
        assert (refused.status, refused.error) == (503, "insufficient capacity")
        # The slot comes back with the answer, whoever posts it.
        await second.post(1, result_body(FILES))
        assert await in_use(caller) == [1, 1]
        requests.append(caller.start())
        assert (await first.next_job()).taskId == 3
        for task_id in (0, 2, 3):
            await first.post(task_id, result_body(FILES))
        assert [(await request).status for request in requests] == [200] * 4
        assert await in_use(caller) == [0, 0]


async def test_insufficient_capacity_moves_the_job_to_the_next_worker(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator) as first, registered(orchestrator) as second:
        request = caller.start()
        await first.post_error((await first.next_job()).taskId, "Insufficient Capacity: busy")
        job = await second.next_job()
        assert job.taskId == 1
        await second.post(job.taskId, result_body(FILES))
        reply = await request
        assert (reply.status, reply.task_id) == (200, "1")

        request = caller.start()
        await first.post_error((await first.next_job()).taskId, "insufficient capacity")
        await second.post_error((await second.next_job()).taskId, "insufficient capacity: draining")
        reply = await request
        assert (reply.status, reply.error) == (503, "insufficient capacity: draining")
        assert [entry["suspended"] for entry in (await caller.status())["workers"]] == [0, 0]


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("text-to-image container returned 400: no prompt", 400, ": no prompt"),
        ("returned 400", 400, "bad request"),
        ("text-to-image container returned 500: broken", 500, None),
        ("Returned 400: the case matters", 500, None),
    ],
)
async def test_other_error_texts_reach_the_caller_and_suspend(
    orchestrator: LoopbackOrchestrator, caller: Caller, text: str, status: int, error: str | None
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        assert await worker.post_error((await worker.next_job()).taskId, text) == (200, "OK")
        reply = await request
        assert (reply.status, reply.error) == (status, error or text)
        assert [entry["suspended"] for entry in (await caller.status())["workers"]] == [1]
        # Suspended or not, it is selected again.
        again = caller.start()
        await worker.post((await worker.next_job()).taskId, result_body(FILES))
        assert (await again).status == 200
    assert orchestrator.faults == []


async def test_a_job_outlives_the_stream_that_brought_it(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator) as other:
        async with registered(orchestrator, capabilities({"acme/only": 1})) as worker:
            request = caller.start({"prompt": "p", "model_id": "acme/only"})
            job = await worker.next_job()
        await orchestrator.wait_for_workers(lambda workers: len(workers) == 1)
        assert await other.post(job.taskId, result_body(FILES)) == (200, "OK")
        assert (await request).status == 200


@pytest.mark.parametrize("task_id", [0, 17, -1])
async def test_an_answer_that_nobody_waits_for_is_taken_and_noted(
    orchestrator: LoopbackOrchestrator, caller: Caller, task_id: int
) -> None:
    async with registered(orchestrator) as worker:
        request = caller.start()
        await worker.post((await worker.next_job()).taskId, result_body(FILES))
        await request
        assert await worker.post(task_id, result_body(FILES)) == (200, "OK")
    assert [fault.task_id for fault in orchestrator.late] == [task_id]
    assert orchestrator.faults == []


async def test_a_job_that_was_not_written_goes_to_the_next_worker(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator), registered(orchestrator) as second:
        first = orchestrator.workers[0]
        first.gone = True  # its stream has ended, and it is still among the workers
        request = caller.start()
        job = await second.next_job()
        assert first not in orchestrator.workers
        assert await second.post(job.taskId, result_body(FILES)) == (200, "OK")
        assert (await request).status == 200
    assert (orchestrator.faults, orchestrator.late) == ([], [])


async def test_a_job_that_was_written_to_a_worker_that_leaves_is_lost() -> None:
    async with (
        LoopbackOrchestrator(secret=SECRET, job_timeout_s=0.3) as orchestrator,
        calling(orchestrator) as caller,
    ):
        async with registered(orchestrator) as worker:
            request = caller.start()
            await worker.next_job()
        assert (await request).status == 500
        assert "not answered within" in orchestrator.faults[0].reason


async def test_an_unanswered_job_costs_the_worker_its_stream() -> None:
    async with (
        LoopbackOrchestrator(secret=SECRET, job_timeout_s=0.3) as orchestrator,
        calling(orchestrator) as caller,
        registered(orchestrator, capabilities({MODEL: 5})) as worker,
    ):
        reply = await caller.generate()
        assert reply.status == 500
        assert "not answered within 0.3 s" in reply.error
        await worker.next_job()
        assert await worker.call.read() is grpc.aio.EOF
        assert (await worker.ended())[0] is grpc.StatusCode.OK
        assert orchestrator.workers == ()
        assert [fault.task_id for fault in orchestrator.faults] == [0]
        # Too late, and no longer of any use.
        assert await worker.post(0, result_body(FILES)) == (200, "OK")
        assert len(orchestrator.late) == 1


async def test_a_job_goes_on_when_its_caller_has_left(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator) as worker:
        async with calling(orchestrator) as hasty:
            request = hasty.start()
            job = await worker.next_job()
            request.cancel()
        assert await in_use(caller) == [1]
        assert await worker.post(job.taskId, result_body(FILES)) == (200, "OK")
        assert await in_use(caller) == [0]
    assert (orchestrator.faults, orchestrator.late) == ([], [])


async def test_any_job_can_be_sent_past_the_gateway(orchestrator: LoopbackOrchestrator) -> None:
    async with registered(orchestrator, capabilities({})) as worker:
        sending = asyncio.create_task(
            orchestrator.send_job(
                worker=orchestrator.workers[0], pipeline="no-such", request_data=b"{]"
            )
        )
        job = await worker.next_job()
        assert (job.AIJobData.pipeline, job.AIJobData.requestData) == ("no-such", b"{]")
        await worker.post(
            job.taskId, b"no", pipeline="no-such", content_type="livepeer/ai-worker-error"
        )
        with pytest.raises(JobFailed, match="no"):
            await sending


async def answered(worker: WireWorker, count: int) -> None:
    """Answers this many jobs."""
    for _ in range(count):
        job = await worker.next_job()
        request = json.loads(job.AIJobData.requestData)["request"]
        body = result_body([("00000000.png", PNG + request["prompt"].encode())])
        await worker.post(job.taskId, body)


async def test_the_oldest_files_are_forgotten(
    orchestrator: LoopbackOrchestrator, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.loopback.store.MAX_STORED_BYTES", 2 * len(PNG))
    urls = []
    async with registered(orchestrator) as worker:
        for _ in range(3):
            request = caller.start()
            await worker.post(
                (await worker.next_job()).taskId, result_body([("00000000.png", PNG)])
            )
            urls.append((await request).document["images"][0]["url"])
    assert [(await caller.get(url))[0] for url in urls] == [404, 200, 200]


async def test_each_caller_gets_its_own_images(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator, capabilities({MODEL: 20})) as worker:
        work = asyncio.create_task(answered(worker, 20))
        replies = await asyncio.gather(
            *(caller.generate({"prompt": f"cat {number}"}) for number in range(20))
        )
        await work
    for number, reply in enumerate(replies):
        url = reply.document["images"][0]["url"]
        assert await caller.get(url) == (200, PNG + f"cat {number}".encode())
    assert {reply.task_id for reply in replies} == {str(number) for number in range(20)}
