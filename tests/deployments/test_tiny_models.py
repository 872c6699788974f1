"""Tiny models: the real layout, the same bytes on every run, nobody's files overwritten."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.errors import LivepeerRayError
from deployments.registry import PIPELINES
from deployments.tiny_models import write_tiny_models
from deployments.tiny_models.__main__ import main
from tests.deployments.conftest import TINY_SD


def contents(directory: Path) -> dict[str, str]:
    """Returns what each path below holds: a file's hash or a link's target."""
    return {
        str(path.relative_to(directory)): (
            f"-> {path.readlink()}"
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_the_command_writes_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "deployments.tiny_models"]
    ran = subprocess.run(
        [*command, tmp_path / "one", "--pipeline", "text-to-image"],
        check=True,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.stdout == ""
    assert ran.stderr == f"text-to-image: {TINY_SD}\n"
    write_tiny_models(tmp_path / "two", ["text-to-image"])
    write_tiny_models(tmp_path / "two", ["text-to-image", "text-to-image"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_layout_is_the_hugging_face_caches(tmp_path: Path) -> None:
    (model,) = write_tiny_models(tmp_path, ["text-to-image"])
    repository = tmp_path / "models--livepeer-ray--tiny-sd"
    assert model.model_id == TINY_SD
    assert model.snapshot == repository / "snapshots" / (repository / "refs/main").read_text()
    assert len(model.snapshot.name) == 40
    links = [path for path in model.snapshot.rglob("*") if not path.is_dir()]
    assert links
    for link in links:
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        blob = link.resolve()
        assert blob.parent == (repository / "blobs").resolve()
        assert blob.name == hashlib.sha256(blob.read_bytes()).hexdigest()


def test_ai_models_json_names_them(tiny_models_dir: Path) -> None:
    entries = json.loads((tiny_models_dir / "aiModels.json").read_text())
    assert entries[0] == {
        "pipeline": "text-to-image",
        "model_id": TINY_SD,
        "warm": True,
        "capacity": 2,
        "ray": {"max_ongoing_requests": 2},
    }
    assert {entry["pipeline"] for entry in entries} == set(PIPELINES)


@pytest.mark.parametrize(
    "foreign", ['[{"pipeline": "text-to-image", "model_id": "a/b"}]', "{ broken", "[]x", "[1]"]
)
def test_somebodys_ai_models_json_is_not_overwritten(tmp_path: Path, foreign: str) -> None:
    (tmp_path / "aiModels.json").write_text(foreign)
    with pytest.raises(LivepeerRayError, match=r"aiModels\.json names models"):
        write_tiny_models(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["aiModels.json"]
    assert (tmp_path / "aiModels.json").read_text() == foreign


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "aiModels.json").write_text('[{"model_id": "a/b"}]')
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    assert f"{tmp_path}/aiModels.json names models that are not tiny" in capsys.readouterr().err


def test_an_unknown_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(LivepeerRayError, match="no tiny model for text-to-smell"):
        write_tiny_models(tmp_path / "models", ["text-to-smell"])
    with pytest.raises(SystemExit):
        main([str(tmp_path / "models"), "--pipeline", "text-to-smell"])
    assert not (tmp_path / "models").exists()
