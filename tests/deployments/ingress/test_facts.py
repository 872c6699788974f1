"""Health, version and hardware: of one model at its address, of all at the root."""

import asyncio
from typing import Any

import pytest
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatusOverview,
    ServeStatus,
)

from deployments.ingress.served import Health, Seen
from deployments.ingress.watch import applications, watch
from tests.deployments.ingress.conftest import API
from tests.deployments.ingress.standin import served

WARM, COLD = served("llm", "org/warm"), served("upscale", "org/cold", cold=True)

STATES = [
    # what Serve says, the health of a warm and of a cold model
    (None, Health.LOADING, Health.LOADING),
    (Seen(running=1, starting=1), Health.OK, Health.OK),
    (Seen(running=1, failed=True), Health.OK, Health.OK),
    (Seen(starting=1), Health.LOADING, Health.LOADING),
    (Seen(), Health.LOADING, Health.IDLE),
    (Seen(failed=True), Health.ERROR, Health.ERROR),
]


@pytest.mark.parametrize(("seen", "warm", "cold"), STATES)
async def test_a_model_s_health_follows_its_replicas(
    api: API, seen: Seen | None, warm: Health, cold: Health
) -> None:
    api.serve(WARM, COLD)
    api.service.served.see({WARM.app: seen, COLD.app: seen} if seen else {})
    assert await api.get("/llm/org/warm/health") == (200, {"status": warm})
    assert await api.get("/upscale/org/cold/health/") == (200, {"status": cold})


@pytest.mark.parametrize(
    ("warm", "cold", "overall"),
    [
        (Seen(running=1), Seen(failed=True), "OK"),
        (Seen(starting=1), Seen(), "LOADING"),
        (Seen(failed=True), Seen(), "IDLE"),
        (Seen(failed=True), Seen(failed=True), "ERROR"),
    ],
)
async def test_at_the_root_health_is_the_best_there_is(
    api: API, warm: Seen, cold: Seen, overall: str
) -> None:
    api.serve(WARM, COLD)
    api.service.served.see({WARM.app: warm, COLD.app: cold})
    assert await api.get("/health") == (200, {"status": overall})


async def test_without_a_model_there_is_nothing_to_load(api: API) -> None:
    api.serve()
    assert await api.get("/health") == (200, {"status": "IDLE"})


async def test_an_application_that_is_rebuilt_keeps_its_health_for_that_moment(api: API) -> None:
    api.serve(WARM)
    api.service.served.see({WARM.app: Seen(rebuilding=True)})
    assert await api.get("/llm/org/warm/health") == (200, {"status": "OK"})
    api.service.served.see({WARM.app: Seen(starting=1)})
    assert await api.get("/llm/org/warm/health") == (200, {"status": "LOADING"})


async def test_version_and_hardware_speak_of_the_model_of_their_address(api: API) -> None:
    api.serve(WARM, COLD)
    about = {"pipeline": "llm", "model_id": "org/warm"}
    assert await api.get("/llm/org/warm/version") == (200, {**about, "version": "0.14.1"})
    card = {"name": "NVIDIA H100", "memory_total": 80, "memory_free": 5}
    gpus = {str(n): {"id": f"GPU-{id_}", **card} for n, id_ in enumerate(("org/warm", "shared"))}
    info = {index: {**gpu, "major": 9, "minor": 0} for index, gpu in gpus.items()}
    assert await api.get("/llm/org/warm/hardware/info") == (200, {**about, "gpu_info": info})
    busy = {"utilization_compute": 60, "utilization_memory": 20}
    stats = {index: {**gpu, **busy} for index, gpu in gpus.items()}
    assert await api.get("/llm/org/warm/hardware/stats/") == (200, {**about, "gpu_stats": stats})


async def test_at_the_root_they_speak_of_all_models(api: API) -> None:
    api.serve(WARM, COLD)
    nobody = {"pipeline": "", "model_id": ""}
    assert await api.get("/version/") == (200, {**nobody, "version": "0.14.1"})
    _, document = await api.get("/hardware/info")
    assert [gpu["id"] for gpu in document.pop("gpu_info").values()] == [
        "GPU-org/warm",
        "GPU-shared",
        "GPU-org/cold",
    ]
    assert document == nobody
    api.serve(WARM)
    _, document = await api.get("/version")
    assert (document["pipeline"], document["model_id"]) == ("llm", "org/warm")


async def test_models_come_and_go_while_it_runs(api: API) -> None:
    api.serve(WARM)
    assert (await api.get("/upscale/org/cold/health"))[0] == 404
    api.serve(COLD)
    assert (await api.get("/upscale/org/cold/health"))[0] == 200
    assert (await api.get("/llm/org/warm/health"))[0] == 404


async def test_what_serve_said_last_holds_while_it_is_silent() -> None:
    said: list[Seen | Exception] = [Seen(running=1), ConnectionError(), Seen(running=2)]
    heard: list[Seen] = []

    def read() -> dict[str, Seen]:
        if not said:
            return {}
        now = said.pop(0)
        if isinstance(now, Exception):
            raise now
        return {"app": now}

    watching = asyncio.create_task(
        watch(lambda seen: heard.extend(seen.values()), read=read, interval_s=0.0)
    )
    while len(heard) < 2:
        await asyncio.sleep(0.001)
    watching.cancel()
    assert heard == [Seen(running=1), Seen(running=2)]


def overview(
    status: ApplicationStatus, replicas: dict[str, int] | None
) -> ApplicationStatusOverview:
    """An application as `serve.status` shows it; None while it is rebuilt."""
    deployments = {}
    if replicas is not None:
        anything: Any = None
        states: Any = replicas
        deployments["model"] = DeploymentStatusOverview(
            status=anything, status_trigger=anything, replica_states=states, message=""
        )
    return ApplicationStatusOverview(
        status=status, message="", last_deployed_time_s=0.0, deployments=deployments
    )


@pytest.mark.parametrize(
    ("application", "seen"),
    [
        (overview(ApplicationStatus.RUNNING, {"RUNNING": 2}), Seen(running=2)),
        (
            overview(ApplicationStatus.DEPLOYING, {"STARTING": 1, "STOPPING": 1}),
            Seen(starting=1),
        ),
        # It works until its successor on another node does.
        (
            overview(ApplicationStatus.RUNNING, {"PENDING_MIGRATION": 1, "STARTING": 1}),
            Seen(running=1, starting=1),
        ),
        (overview(ApplicationStatus.DEPLOYING, None), Seen(rebuilding=True)),
        (overview(ApplicationStatus.DEPLOY_FAILED, {}), Seen(failed=True)),
        (overview(ApplicationStatus.UNHEALTHY, {"RUNNING": 1}), Seen(running=1, failed=True)),
    ],
)
def test_serve_s_status_is_read(
    application: ApplicationStatusOverview, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = ServeStatus(applications={"app": application})
    monkeypatch.setattr("ray.serve.status", lambda: status)
    assert applications() == {"app": seen}
