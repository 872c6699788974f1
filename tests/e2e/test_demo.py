"""The demo's requests over the whole path; `make demo` itself is in test_readme.py."""

from dataclasses import replace
from pathlib import Path

from cluster.demo.gateway import send
from cluster.demo.inputs import picture, sound
from cluster.demo.samples import EVERY_PIPELINE, INPUT_FILES
from tests.e2e.conftest import BROKEN, SECRET, TINY, Deployed, Orchestrator
from tests.e2e.programs import livepeer_ray

EXTENSIONS = {
    "image-to-video": ".mp4",
    "audio-to-text": ".txt",
    "llm": ".txt",
    "image-to-text": ".txt",
    "text-to-speech": ".wav",
}


async def test_every_sample_makes_a_file(
    orchestrator: Orchestrator, deployed: Deployed, tmp_path: Path
) -> None:
    (tmp_path / INPUT_FILES["image"]).write_bytes(picture())
    (tmp_path / INPUT_FILES["audio"]).write_bytes(sound())
    flags = (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", deployed.ray.address),
        *("--ai-models", str(deployed.ai_models)),
    )
    async with livepeer_ray("bridge", *flags, secret=SECRET):
        await orchestrator.serves({sample.pipeline for sample in EVERY_PIPELINE})
        for sample in EVERY_PIPELINE:
            if sample.pipeline == "text-to-image":  # the only one with several models here
                lost = replace(sample, fields={**sample.fields, "model_id": BROKEN})
                refused = await send(orchestrator.http, lost, tmp_path)
                assert refused.path is None
                assert "503: insufficient capacity" in refused.error
                sample = replace(sample, fields={**sample.fields, "model_id": TINY})
            output = await send(orchestrator.http, sample, tmp_path)
            assert not output.error, sample
            extension = EXTENSIONS.get(sample.pipeline, ".png")
            assert output.path == tmp_path / f"{sample.name}{extension}"
            assert output.size
            assert output.task_id.isdecimal()
            assert bool(output.text) == (extension == ".txt")
