"""Every pipeline from its own route to a worker and back."""

import asyncio
import io
import subprocess
import sys

import pytest

from cluster.loopback import LoopbackOrchestrator
from cluster.loopback.pipelines import CAPABILITIES, PIPELINES
from tests.cluster.loopback.cases import BY_NAME, CASES, COMPLETION, FILE, NUMBERS, Case, start
from tests.cluster.loopback.wire import (
    MODEL,
    Caller,
    capabilities,
    client_tls,
    document_body,
    registered,
)


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
