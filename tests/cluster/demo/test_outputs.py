"""What the demo makes of answers and logs."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.cli import main
from cluster.commands.demo import table
from cluster.demo.gateway import Output
from cluster.demo.inputs import HEIGHT, WIDTH, picture, sound
from cluster.demo.logs import Logs
from cluster.demo.masks import draw_masks
from cluster.demo.page import write_page
from cluster.demo.samples import EVERY_PIPELINE
from cluster.settings import EXIT_CONFIG

SAMPLES = {sample.pipeline: sample for sample in EVERY_PIPELINE}


def outputs(directory: Path) -> list[Output]:
    """A picture made from a picture, a sound, a hostile text and a failure."""
    for name in ("input.png", "image-to-image.png"):
        (directory / name).write_bytes(picture())
    (directory / "text-to-speech.wav").write_bytes(sound())
    text = "<script>alert(1)</script>\n\x1b[31m and so on"
    (directory / "llm.txt").write_text(text)
    made = [("image-to-image", ".png", ""), ("text-to-speech", ".wav", ""), ("llm", ".txt", text)]
    return [
        *(
            Output(
                sample=SAMPLES[pipeline],
                path=directory / f"{pipeline}{extension}",
                text=text,
                seconds=1.5,
                task_id=pipeline,
            )
            for pipeline, extension, text in made
        ),
        Output(sample=SAMPLES["upscale"], error="503: no <capacity>"),
    ]


def test_masks_are_drawn_where_they_are() -> None:
    masks = np.zeros((2, HEIGHT, WIDTH))
    masks[0, :, :20] = 1.0
    masks[1, :10] = 7.5
    drawn = Image.open(
        io.BytesIO(draw_masks(picture(), json.dumps(masks.tolist()), box=(40, 40, 60, 60)))
    )
    before, after = np.asarray(Image.open(io.BytesIO(picture()))), np.asarray(drawn)
    assert after.shape == before.shape
    changed = np.any(before != after, axis=-1)
    assert changed[:, :20].all()
    assert changed[:10].all()
    assert tuple(after[40, 50]) == (255, 255, 255)
    assert not changed[70:, 20:].any()


def test_the_page_shows_every_output_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    html = write_page(tmp_path, outputs(tmp_path)).read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert {"input.png", "image-to-image.png", "text-to-speech.wav"} == set(sources)
    assert all((tmp_path / source).is_file() for source in sources)
    assert not re.search(r"https?:|url\(|@import|<script|<link", html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "503: no &lt;capacity&gt;" in html


def test_the_table_has_sizes_replicas_and_reasons(tmp_path: Path) -> None:
    lines = table(outputs(tmp_path), {"llm": {"compute_s": 0.25, "replica": "abc123"}})
    assert re.search(rf"^image-to-image +1\.50 .*image-to-image\.png, {WIDTH}x{HEIGHT}$", lines[1])
    assert lines[2].endswith("text-to-speech.wav, 2.0 s")
    assert re.search(r"^llm +1\.50 +0\.25 abc123 .*llm\.txt, \d+ bytes: '<script>", lines[3])
    assert re.search(r"^upscale +failed +503: no <capacity>$", lines[4])
    assert "\x1b" not in "".join(lines)


def test_what_the_logs_tell(tmp_path: Path) -> None:
    logs = Logs.empty(tmp_path)
    assert (logs.jobs(), logs.failures(), logs.problems()) == ({}, {}, "")
    broken = "llm org/model: DEPLOY_FAILED: ModelBroken: no config.json"
    logs.worker.write_text(
        json.dumps({"level": "INFO", "message": "deploying the models"})
        + "\n"
        + json.dumps({"level": "INFO", "message": "job 3", "job": {"task_id": 3, "outcome": "ok"}})
        + "\n"
        + json.dumps({"level": "ERROR", "message": broken})
        + '\n{"level": "INF'
    )
    assert logs.jobs() == {"3": {"task_id": 3, "outcome": "ok"}}
    assert logs.failures() == {"llm": broken}
    assert broken in logs.problems()
    assert "deploying" not in logs.problems()
    assert str(logs.worker) in logs.problems()
    assert Logs.empty(tmp_path).failures() == {}


def test_a_place_that_cannot_be_made_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--output", str(tmp_path / "file" / "below")]) == EXIT_CONFIG
    assert "--output: " in capsys.readouterr().err
