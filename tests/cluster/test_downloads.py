"""`livepeer-ray models download` against a hub on this machine."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.cli import main
from deployments.assembly import find_files
from deployments.loading import find_snapshot
from deployments.safety import CHECKER_ID
from deployments.special_models import LIGHTNING, SDXL_BASE
from deployments.speecht5 import ARCHIVE, VOCODER, VOICES
from tests.e2e.programs import BIN
from tests.hub import Hub, running_hub

TINY = "livepeer-ray/tiny-sd"
SPEECH = "org/speech"
WEIGHTS = bytes(range(256)) * 47_000
"""12 MB: the hub's client writes, and goes on, by 10 MiB."""


@dataclass(frozen=True)
class Done:
    """What a command printed and returned."""

    status: int
    out: str
    err: str


Download = Callable[[str], Done]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def download(
    hub: Hub,
    models_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Download:
    """Runs the command on models in the short form."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    nobody_is_logged_in = str(tmp_path / "token")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", nobody_is_logged_in)
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def run(models: str) -> Done:
        flags = ["--ai-models", models, "--ai-models-dir", str(models_dir)]
        status = main(["models", "download", *flags])
        return Done(status, *capfd.readouterr())

    return run


def speech(hub: Hub) -> None:
    hub.add(
        SPEECH,
        {
            "config.json": b'{"model_type": "speecht5"}',
            "model.safetensors": WEIGHTS,
            "pytorch_model.bin": WEIGHTS,
            "README.md": b"# Speech",
        },
    )
    hub.add(VOCODER, {"config.json": b"{}", "pytorch_model.bin": b"weights"})
    hub.add(f"datasets/{VOICES}", {ARCHIVE: b"voices", "dataset_infos.json": b"{}"})


def test_a_real_model_is_fetched_and_loads(
    hub: Hub, models_dir: Path, tiny_models_dir: Path, download: Download
) -> None:
    snapshot = find_snapshot(TINY, tiny_models_dir)
    files = {
        str(path.relative_to(snapshot)): path.read_bytes()
        for path in snapshot.rglob("*")
        if path.is_file()
    }
    hub.add(TINY, {**files, "whole.safetensors": b"the same again", "README.md": b"# Tiny"})
    hub.add(CHECKER_ID, {"config.json": b"{}", "model.safetensors": b"weights"})
    done = download(f"text-to-image:{TINY}:true")
    assert done.status == 0, done.err
    assert f"{TINY}: {len(files)} files" in done.out
    assert CHECKER_ID in done.out
    assert "whole.safetensors" not in hub.names

    # As the replica loads it.
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(find_snapshot(TINY, models_dir), local_files_only=True)
    assert type(pipe).__name__ == "StableDiffusionPipeline"


def test_what_is_there_is_not_fetched_again_and_what_was_cut_short_goes_on(
    hub: Hub, models_dir: Path, download: Download
) -> None:
    speech(hub)
    models = f"text-to-speech:{SPEECH}:true"
    hub.cut_after = 11_000_000
    done = download(models)
    assert done.status == 0, done.err
    begun = [start for name, start in hub.sent if name == "model.safetensors"]
    assert begun[0] == 0
    assert begun[1] > 0, "from where it ended"
    assert (find_snapshot(SPEECH, models_dir) / "model.safetensors").read_bytes() == WEIGHTS
    assert find_snapshot(VOCODER, models_dir).is_dir()
    voices = find_snapshot(VOICES, models_dir, repo_type="dataset")
    assert (voices / ARCHIVE).read_bytes() == b"voices"
    assert {"README.md", "dataset_infos.json"}.isdisjoint(hub.names)

    hub.sent.clear()
    assert download(models).status == 0
    assert hub.sent == []

    # A new version brings what changed, and is what replicas find then.
    hub.add(SPEECH, {"config.json": b'{"model_type": "speecht5", "new": 1}'})
    assert download(models).status == 0
    assert hub.names == ["config.json"]
    assert json.loads((find_snapshot(SPEECH, models_dir) / "config.json").read_text())["new"] == 1


def test_a_model_of_several_repositories(hub: Hub, models_dir: Path, download: Download) -> None:
    config, weights = {"config.json": b"{}"}, {"diffusion_pytorch_model.safetensors": b"weights"}
    unet = "sdxl_lightning_2step_unet.safetensors"
    others = {f"sdxl_lightning_{steps}step_unet.safetensors": b"other" for steps in (4, 8)}
    hub.add(
        SDXL_BASE,
        {
            "model_index.json": b'{"unet": ["diffusers", "UNet2DConditionModel"]}',
            **{f"unet/{name}": data for name, data in {**config, **weights}.items()},
        },
    )
    hub.add(LIGHTNING, {unet: b"two steps", **others})
    hub.add(CHECKER_ID, {**config, "model.safetensors": b"weights"})
    noisy = "SG161222/Realistic_Vision_V6.0_B1_noVAE"
    hub.add(noisy, dict(hub.repositories[SDXL_BASE]))
    hub.add("stabilityai/sd-vae-ft-ema", {**config, **weights})
    done = download(f"text-to-image:{LIGHTNING}-2step:true,image-to-image:{noisy}:true")
    assert done.status == 0, done.err
    files = find_files(f"{LIGHTNING}-2step", models_dir)
    assert files.unet is not None
    assert files.unet.read_bytes() == b"two steps"
    assert files.pipeline == find_snapshot(SDXL_BASE, models_dir)
    vae = find_files(noisy, models_dir).vae
    assert vae is not None
    assert (vae / "diffusion_pytorch_model.safetensors").is_file()
    assert find_snapshot(CHECKER_ID, models_dir).is_dir()
    assert others.keys().isdisjoint(hub.names)


def test_what_is_missing_is_named_with_the_entry_that_needs_it(
    hub: Hub, models_dir: Path, download: Download
) -> None:
    speech(hub)
    del hub.repositories[f"datasets/{VOICES}"]
    hub.add(LIGHTNING, {"sdxl_lightning_8step_unet.safetensors": b"weights"})
    done = download(
        f"text-to-speech:{SPEECH}:true,text-to-image:{LIGHTNING}-2step:true,"
        f"image-to-image:{LIGHTNING}-2step:true"
    )
    assert done.status == 1
    first, second, third = (f"entry {number} (" for number in (1, 2, 3))
    lines = {line.partition(":")[0]: line for line in done.err.splitlines()}
    assert f"{ARCHIVE} is missing in {models_dir}: there is no {hub.url}/datasets" in lines[VOICES]
    assert lines[VOICES].endswith(f"; needed by {first}text-to-speech {SPEECH})")
    unet = "sdxl_lightning_2step_unet.safetensors"
    missing = f"{unet} is missing in {models_dir}: the repository has no {unet}; needed by"
    assert missing in lines[LIGHTNING]
    both = f"{second}text-to-image {LIGHTNING}-2step), {third}image-to-image {LIGHTNING}-2step)"
    for repository in (LIGHTNING, SDXL_BASE, CHECKER_ID):
        assert lines[repository].endswith(both)
    assert f"{SPEECH}: 2 files" in done.out


def test_gated_models_are_explained_and_the_others_fetched(
    hub: Hub, models_dir: Path, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech(hub)
    hub.add("org/gated", {"config.json": b"{}", "model.safetensors": b"weights"})
    hub.gated.add("org/gated")
    models = f"llm:org/gated:true,text-to-speech:{SPEECH}:true,llm:org/nowhere:true"
    done = download(models)
    assert done.status == 1
    assert f"org/gated: missing in {models_dir}: its authors ask for consent" in done.err
    assert f"log in at {hub.url}/org/gated, accept, and set HF_TOKEN" in done.err
    assert f"there is no {hub.url}/org/nowhere, or it is private" in done.err
    assert f"{SPEECH}: 2 files" in done.out
    assert "Traceback" not in done.err

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = download("llm:org/gated:true")
    assert done.status == 0, done.err
    assert hub.tokens == {"hf_secret"}
    assert "hf_secret" not in done.out + done.err


def test_without_a_network_it_says_what_is_missing_and_where_it_looked(
    hub: Hub, models_dir: Path, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech(hub)
    assert download(f"text-to-speech:{SPEECH}:true").status == 0
    nobody = "http://127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    done = download(f"text-to-speech:{SPEECH}:true,llm:org/other:true")
    assert done.status == 1
    assert f"org/other: missing in {models_dir}: no answer from {nobody}" in done.err
    assert f"{SPEECH}: not brought up to date" in done.err
    assert "Traceback" not in done.err


def test_a_process_that_is_told_to_stay_offline(hub: Hub, models_dir: Path) -> None:
    speech(hub)
    done = subprocess.run(
        [
            *(BIN / "livepeer-ray", "models", "download"),
            *("--ai-models", f"text-to-speech:{SPEECH}:true"),
            *("--ai-models-dir", models_dir),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 1
    assert f"{SPEECH}: missing in {models_dir}: HF_HUB_OFFLINE is set" in done.stderr


def test_a_repository_without_weights_for_us(hub: Hub, download: Download) -> None:
    hub.add("facebook/sam2", {"sam2.pt": b"weights", "sam2.yaml": b"a: 1"})
    done = download("segment-anything-2:facebook/sam2:true")
    assert done.status == 1
    assert "no weights in a form that is loaded here" in done.err
    assert "sam2.pt" not in hub.names
