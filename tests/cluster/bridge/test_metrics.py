"""What Prometheus reads of a bridge that has done some jobs."""

import asyncio
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.bridge.address import Address
from cluster.bridge.journal import open_journal
from cluster.bridge.metrics import Metrics
from cluster.bridge.state import BridgeState, RegistrationState, state_endpoint
from cluster.capacity import Capacity
from cluster.errors import ReplicaLost
from cluster.loopback import JobFailed, LoopbackOrchestrator
from tests.cluster.bridge.conftest import Ask, address, capacity, registered, running
from tests.cluster.bridge.test_state import state_of
from tests.free_ports import free_port

A = ("text-to-image", "org/a")
NOBODYS = ("text-to-image", "")

LABELS = ("pipeline", "model_id", "outcome", "orchestrator", "way")

Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """Values by name and labels."""
    return {
        (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_jobs_and_what_is_now(
    orchestrator: LoopbackOrchestrator, ask: Ask, tmp_path: Path
) -> None:
    where = address(orchestrator)
    journal = open_journal(tmp_path, addresses=[where])
    async with running(where, capacity(a=2), journal=journal) as bridge:
        metrics = Metrics(read=state_of(bridge), journal=journal)
        await registered(orchestrator)
        bridge.backend.first = [ReplicaLost("gone", dead="one")]
        assert (await ask())[0] == 200
        assert (await ask(num_inference_steps=0))[0] == 400
        for pipeline in ("text-to-image", "made-up-7"):
            with pytest.raises(JobFailed, match="insufficient capacity"):
                await orchestrator.send_job(
                    worker=orchestrator.workers[0],
                    pipeline=pipeline,
                    request_data=b'{"request": {"prompt": "x", "model_id": "org/not-ours"}}',
                )
        while len(bridge.records) < 4 or not bridge.registration.state.registered:
            await asyncio.sleep(0.01)
        for record in bridge.records:
            metrics.finished(record)
        port = free_port()
        async with (
            state_endpoint(("127.0.0.1", port), state_of(bridge), metrics=metrics.text),
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
            http.get("/metrics") as response,
        ):
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            found = samples(await response.text())
    journal.close()
    jobs = {key[1:]: count for key, count in found.items() if key[0] == "livepeer_ray_jobs_total"}
    assert jobs == {
        (*A, "ok"): 1,
        (*A, "rejected"): 1,
        (*NOBODYS, "insufficient_capacity"): 1,
        ("", "", "insufficient_capacity"): 1,
    }
    assert found["livepeer_ray_job_retries_total", *A] == 1
    assert found["livepeer_ray_jobs_undelivered_total", *A] == 0
    assert found["livepeer_ray_job_seconds_count", *A] == 2
    assert found["livepeer_ray_job_waiting_seconds_count", *A] == 2
    assert found["livepeer_ray_job_replica_seconds_count", *A] == 1
    assert found["livepeer_ray_slots", *A] == 2
    assert found["livepeer_ray_jobs_in_flight", *A] == 0
    assert found["livepeer_ray_registration_up", orchestrator.url, "worker"] == 1
    assert found["livepeer_ray_journal_jobs",] == 0
    assert found["livepeer_ray_journal_bytes",] > 0
    assert "made-up" not in str(found)
    assert "not-ours" not in str(found)


def test_both_ways_at_one_orchestrator_are_two_series(tmp_path: Path) -> None:
    where = Address("127.0.0.1", 1)
    journal = open_journal(tmp_path, addresses=[where])
    worker = RegistrationState(
        orchestrator=where.url, registered=True, detail="", certificate="", advertised=Capacity()
    )
    state = BridgeState(
        models=[], registrations=[worker, replace(worker, way="live-runner", registered=False)]
    )
    found = samples(Metrics(read=lambda: state, journal=journal).text().decode())
    journal.close()
    assert {
        key[1:]: up for key, up in found.items() if key[0] == "livepeer_ray_registration_up"
    } == {
        (where.url, "worker"): 1,
        (where.url, "live-runner"): 0,
    }
