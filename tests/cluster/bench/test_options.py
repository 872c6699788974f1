"""The flags of `livepeer-ray bench`: read before anything is started."""

import pytest

from cluster.cli import main
from cluster.settings import EXIT_CONFIG

MODEL = ("bench", "--pipeline", "text-to-image", "--model-id", "org/name")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--flags", "FAST"), "--flags: want some of none, SFAST, DEEPCACHE, got 'FAST'"),
        (("--concurrency", "1,x"), "--concurrency: want numbers from 1 to 1024"),
        (("--concurrency", "0"), "--concurrency: want numbers"),
        (("--runs", "0"), "--runs: want at least 1, got 0"),
        (("--batch", "-1"), "--batch: want at least 1, got -1"),
        (("--request", "{"), "--request: not JSON: "),
        (("--ray", "[1]"), "--ray: want a JSON object, got [1]"),
        (("--ray", '{"gpus": 1}'), "ray.gpus: is not an option"),
        (("--pipeline", "magic"), "pipeline: must be one of text-to-image, "),
        (("--pipeline", "byoc"), "pipeline: the network does not send it"),
        (("--model-id", "a b"), "model_id: must not contain blanks"),
        (("--model-id", "a/x-Lightning", "--flags", "DEEPCACHE"), "DEEPCACHE ignored: it costs"),
        (("--json", "/nowhere/at-all.json"), "--json: /nowhere is no directory"),
        (("--chart", "/nowhere/at-all.png"), "--chart: /nowhere is no directory"),
        (("--input", "/nowhere/at-all.png"), "--input: /nowhere/at-all.png: No such file"),
    ],
)
def test_what_makes_no_sense_is_named(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert main([*MODEL, *flags]) == EXIT_CONFIG
    assert message in capsys.readouterr().err
