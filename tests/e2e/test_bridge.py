"""The whole path: orchestrator, bridge process, Serve replica with a real model, and back."""

import asyncio
import io
import json
import signal

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import (
    BROKEN,
    MISSING,
    SECOND,
    SECRET,
    TINY,
    Deployed,
    Gateway,
    Orchestrator,
)
from tests.e2e.programs import livepeer_ray


def bridge_flags(orchestrator: Orchestrator, deployed: Deployed, *models: str) -> tuple[str, ...]:
    ai_models = deployed.only(*models) if models else str(deployed.ai_models)
    return (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", deployed.ray.address),
        *("--ai-models", ai_models),
    )


def pixels(png: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(Image.open(io.BytesIO(png)))


async def test_images_arrive(
    orchestrator: Orchestrator, gateway: Gateway, deployed: Deployed
) -> None:
    async with livepeer_ray("bridge", *bridge_flags(orchestrator, deployed), secret=SECRET):
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        status, document = await gateway.text_to_image(seed=5, num_images_per_prompt=2)
        assert status == 200
        first, second = document["images"]
        assert (first["seed"], second["seed"]) == (5, 6)
        data = await gateway.download(first["url"])
        assert pixels(data).shape == (64, 128, 3)
        assert data != await gateway.download(second["url"])

        # The same seed, from whichever replica, is the same picture.
        _, again = await gateway.text_to_image(seed=5)
        same = pixels(await gateway.download(again["images"][0]["url"])).astype(int)
        assert np.abs(same - pixels(data)).max() <= 1

        _, random = await gateway.text_to_image()
        assert 0 <= random["images"][0]["seed"] < 2**32


async def test_bad_requests_cost_nothing(
    orchestrator: Orchestrator, gateway: Gateway, deployed: Deployed
) -> None:
    flags = bridge_flags(orchestrator, deployed, TINY)
    async with livepeer_ray("bridge", *flags, secret=SECRET) as bridge:
        await orchestrator.advertises({TINY: 2})
        for request, reason in (
            ({"width": 100}, "width: Input should be a multiple of 8"),
            ({"height": 100_000}, "height: Input should be less than or equal to 2048"),
            ({"prompt": "x" * 500_000}, "prompt: String should have at most"),
            ({"num_inference_steps": 0}, "num_inference_steps: "),
            ({"loras": "{not json"}, "loras"),
            ({"loras": '{"no/such-lora": 1.0}'}, "no/such-lora"),
            ({"loras": '{"\\ud800": 1.0}'}, "loras"),
        ):
            status, document = await gateway.text_to_image(**request)
            assert (status, reason in json.dumps(document)) == (400, True), document
        assert (await gateway.text_to_image())[0] == 200
        assert "Traceback" not in bridge.output


async def test_a_broken_and_a_missing_model_are_named_and_the_others_go_on(
    orchestrator: Orchestrator, gateway: Gateway, deployed: Deployed
) -> None:
    flags = bridge_flags(orchestrator, deployed)
    async with livepeer_ray("bridge", *flags, secret=SECRET) as bridge:
        missing = await bridge.says(f"{MISSING}: DEPLOY_FAILED")
        assert str(deployed.models_dir) in missing
        assert "hf download" in missing
        broken = await bridge.says(f"{BROKEN}: DEPLOY_FAILED")
        assert str(deployed.models_dir) in broken
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        assert (await gateway.text_to_image(model_id=TINY))[0] == 200
        assert (await gateway.text_to_image(model_id=MISSING))[0] == 503


async def test_two_bridges_serve_one_orchestrator(
    orchestrator: Orchestrator, gateway: Gateway, deployed: Deployed
) -> None:
    async with (
        livepeer_ray("bridge", *bridge_flags(orchestrator, deployed, TINY), secret=SECRET) as first,
        livepeer_ray(
            "bridge", *bridge_flags(orchestrator, deployed, SECOND), secret=SECRET
        ) as second,
    ):
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        answers = await asyncio.gather(
            gateway.text_to_image(model_id=TINY), gateway.text_to_image(model_id=SECOND)
        )
        assert [status for status, _ in answers] == [200, 200]
        await first.says(rf"job \d+ text-to-image {TINY}: ok")
        await second.says(rf"job \d+ text-to-image {SECOND}: ok")


async def test_sigterm_finishes_the_running_job(
    orchestrator: Orchestrator, gateway: Gateway, deployed: Deployed
) -> None:
    flags = bridge_flags(orchestrator, deployed, TINY)
    async with livepeer_ray("bridge", *flags, secret=SECRET) as bridge:
        await orchestrator.advertises({TINY: 2})
        asked = asyncio.create_task(gateway.text_to_image(num_inference_steps=150))
        await orchestrator.has_a_job_out()
        bridge.signal(signal.SIGTERM)
        await orchestrator.has_no_worker()
        assert not asked.done()
        assert (await asked)[0] == 200
        assert await bridge.ends() == 0


async def test_a_wrong_secret_is_status_3(orchestrator: Orchestrator, deployed: Deployed) -> None:
    flags = bridge_flags(orchestrator, deployed, TINY)
    async with livepeer_ray("bridge", *flags, secret="not the secret") as bridge:
        await bridge.says("does not accept the secret: --orch-secret must be")
        assert await bridge.ends() == 3
        assert "not the secret" not in bridge.output


async def test_no_ray_cluster_is_status_4() -> None:
    flags = ("--orch-addr", "127.0.0.1:1", "--ai-models", "text-to-image:org/a:true")
    async with livepeer_ray(
        "bridge", *flags, "--ray-address", "127.0.0.1:1", secret=SECRET
    ) as bridge:
        await bridge.says("no Ray cluster at '127.0.0.1:1'.*ray start --head")
        assert await bridge.ends() == 4


@pytest.mark.parametrize("command", ["bridge", "start"])
async def test_a_bad_ai_models_is_status_2(command: str) -> None:
    flags = ("--orch-addr", "127.0.0.1:1", "--ai-models", "text-to-image:org/a:maybe")
    async with livepeer_ray(command, *flags, secret=SECRET) as ended:
        assert await ended.ends() == 2
        assert "maybe" in ended.output
        assert "Traceback" not in ended.output
