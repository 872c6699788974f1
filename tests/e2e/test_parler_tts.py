"""Parler-TTS over the whole path, in the runtime environment that its replicas get."""

import io
import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from tests.e2e.conftest import SECRET, Orchestrator, RayCluster
from tests.e2e.parler_environment import MODEL_ID, TEXT
from tests.e2e.programs import livepeer_ray

pytestmark = [pytest.mark.installs, pytest.mark.timeout(1800)]


async def test_parler_tts_speaks_in_an_environment_of_its_own(
    ray: RayCluster, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    # A process of its own: pytest's must stay outside the cluster.
    trial = subprocess.run(  # noqa: ASYNC221 - nothing else runs here meanwhile
        [sys.executable, "-m", "tests.e2e.parler_environment", ray.address, tmp_path],
        stdout=subprocess.PIPE,
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        check=True,
    )
    report = json.loads(trial.stdout)
    assert report["transformers"] == "4.46.1"
    calm, same, loud, default = report["spoken"]
    assert calm == same
    # Who speaks is heard, also when the request does not say.
    assert len({calm, loud, default}) == 3
    assert report["asked"] > 4 * 20

    flags = (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", ray.address),
        *("--ai-models", f"text-to-speech:{MODEL_ID}:true"),
        *("--ai-models-dir", str(tmp_path)),
        *("--device", "cpu"),
    )
    async with livepeer_ray("start", *flags, secret=SECRET):
        await orchestrator.serves({"text-to-speech"})
        body = {"model_id": MODEL_ID, "text": TEXT, "description": "A calm voice."}
        async with orchestrator.http.post("/text-to-speech", json=body) as response:
            assert response.status == 200, await response.text()
            url = (await response.json())["audio"]["url"]
        async with orchestrator.http.get(url) as response:
            data = await response.read()
    with wave.open(io.BytesIO(data)) as speech:
        assert speech.getframerate() == 44_100
        assert speech.getnframes() > 4_410
