"""`livepeer-ray validate`: what is shown of an aiModels.json."""

import subprocess
import sys

import pytest

from cluster.ai_models import format_table, load_ai_models
from cluster.commands import validate
from tests.cluster.ai_models.reading import TOKEN, Write, entry


def test_table(write: Write) -> None:
    models = load_ai_models(
        write(
            [
                entry(warm=True, capacity=12, optimization_flags={"SFAST": True}),
                entry(model_id="a/b", ray={"num_gpus": 0}),
                entry(
                    model_id="b",
                    ray={
                        "num_gpus": 0.25,
                        "max_replicas": 3,
                        "max_ongoing_requests": 2,
                        "accelerator_type": "L40S",
                    },
                ),
                entry(pipeline="llm", model_id="c/d", warm=True, url="http://h:8000", token=TOKEN),
            ]
        )
    )
    assert format_table(models).splitlines() == [
        "PIPELINE       MODEL     WARM  CAPACITY  FLAGS  RUNS ON",
        "text-to-image  org/name  yes   12        SFAST  Ray, 1 GPU a replica",
        "text-to-image  a/b       no    1         -      Ray, CPU",
        "text-to-image  b         no    1         -      Ray, 0.25 GPU a replica, on L40S, "
        "2 requests at a time, up to 3 replicas",
        "llm            c/d       yes   1         -      http://h:8000, with a token",
    ]
    assert TOKEN not in repr(models)


def test_validate_prints_the_table_and_warnings(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write([entry(warm=True), entry(pipeline="byoc")])
    assert validate.run(str(path)) == 0
    out, err = capsys.readouterr()
    assert out == format_table(load_ai_models(path)) + "\n"
    assert err == (
        f"warning: {path}: entry 2 (byoc org/name): pipeline: the network does not send it to "
        "remote AI workers, skipped\n"
    )


def test_validate_prints_every_problem(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write([entry(capacity=-1), entry(warm=3)])
    assert validate.run(str(path)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{path}: entry 1 (text-to-image org/name): capacity: must be at least 0, got -1",
        f"{path}: entry 2 (text-to-image org/name): warm: must be true or false, got 3",
    ]


def test_import_is_light() -> None:
    heavy = ["torch", "diffusers", "transformers", "huggingface_hub", "ray", "grpc", "aiohttp"]
    code = (
        "import sys, cluster.ai_models, cluster.commands.validate\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
