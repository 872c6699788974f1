"""Where aiModels come from: files, the short form, and what is wrong with either."""

import json
from pathlib import Path

import pytest

from cluster.ai_models import AIModel, load_ai_models
from cluster.commands import validate
from cluster.errors import AIModelsError
from cluster.settings import DEFAULT_AI_MODELS
from tests.cluster.ai_models.reading import TOKEN, Write, entry, problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1}', "line 1, column 10: not JSON: Expecting ',' delimiter"),
        ('[\n {"a": tru}]', "line 2, column 8: not JSON: Expecting value"),
        ("[1,\n]", "line 2, column 1: not JSON: Expecting value (remove the comma before it)"),
        ("", "line 1, column 1: not JSON: Expecting value"),
        ("[NaN]", "not JSON: NaN is not a JSON value"),
        (f"[{'9' * 5000}]", "not JSON: a number without end"),
        ("[" * 100_000, "not an aiModels.json: nested too deeply"),
        ("[]", "the list is empty: add an entry with a pipeline and a model_id"),
        ("{}", "must be a list of entries, [{...}, {...}], got an object"),
        ("null", "must be a list of entries, [{...}, {...}], got null"),
        (f'"{TOKEN}"', "must be a list of entries, [{...}, {...}], got a string"),
    ],
)
def test_broken_file(write: Write, text: str, expected: str) -> None:
    assert problems(write(text)) == [expected]


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "models"
    path.write_bytes(b"[\n\xff]")
    assert problems(path) == ["line 2: not UTF-8 text; save the file as UTF-8"]


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "aiModels.json"
    path.write_text(json.dumps([entry()]), encoding="utf-8-sig")
    assert len(load_ai_models(str(path)).models) == 1


def test_directory(tmp_path: Path) -> None:
    assert problems(tmp_path) == ["is a directory; name the file in it, such as aiModels.json"]


def test_file_that_may_not_be_read() -> None:
    # /proc/self/mem is there for everybody, root included, and fails to read at offset 0.
    (problem,) = problems("/proc/self/mem")
    assert problem.startswith("cannot be read: ")


@pytest.mark.parametrize(
    "source",
    [
        "/nowhere/aiModels.json",
        "nowhere.json",
        "./no:where",
        "/no:where/models",
        "no:where.json",
        "models",
        "conf/models",
        "/etc/hostname/aiModels.json",
        "no\0where.json",
        Path("a:b:c"),
    ],
)
def test_no_such_file(source: str | Path) -> None:
    with pytest.raises(AIModelsError, match=r": no such file; name one that exists, or models as"):
        load_ai_models(source)


def test_home_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert validate.run(DEFAULT_AI_MODELS) == 2
    assert f"{tmp_path}/.lpData/aiModels.json: no such file" in capsys.readouterr().err

    (tmp_path / ".lpData").mkdir()
    (tmp_path / ".lpData" / "aiModels.json").write_text(json.dumps([entry()]))
    models = load_ai_models(Path(DEFAULT_AI_MODELS))
    assert models.source == f"{tmp_path}/.lpData/aiModels.json"
    assert load_ai_models("~/.lpData/aiModels.json") == models


def test_home_of_nobody() -> None:
    assert problems("~nobody-by-this-name/x.json") == ["there is no such home directory"]


def test_short_form() -> None:
    text = "text-to-image:org/name:true, text-to-image:a/b:F,text-to-image:org/name:1"
    models = load_ai_models(text)
    assert models.models == (
        AIModel(pipeline="text-to-image", model_id="org/name", warm=True, capacity=2),
        AIModel(pipeline="text-to-image", model_id="a/b"),
    )
    assert models.source == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text-to-image:org/name", ["entry 1 (text-to-image org/name): warm: must be true or fa"]),
        (
            "text-to-image:a/b:true,text-to-image:org/name:yes",
            ['entry 2 (text-to-image org/name): warm: must be true or false, got "yes"'],
        ),
        (
            "text-to-image:org/name:true:2",
            ['entry 1 (text-to-image org/name): warm: must be true or false, got "true:2"'],
        ),
        (
            "text-to-image:a/b:true,",
            [
                "entry 2: pipeline: must be one of ",
                "entry 2: model_id: must not be empty",
                "entry 2: warm: must be true or false",
            ],
        ),
        ("a:b:true", ["entry 1 (a b): pipeline: must be one of "]),
    ],
)
def test_broken_short_form(text: str, expected: list[str]) -> None:
    with pytest.raises(AIModelsError) as caught:
        load_ai_models(text)
    found = caught.value.problems
    assert len(found) == len(expected)
    for problem, words in zip(found, expected, strict=True):
        assert f"short form (pipeline:model_id:warm,...): {words}" in problem


@pytest.mark.parametrize("text", ["", "  "])
def test_no_source(text: str) -> None:
    with pytest.raises(AIModelsError, match=r"^no AI models given: name a file, or models as"):
        load_ai_models(text)


def test_a_file_wins_over_the_short_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text-to-image:x:true").write_text(json.dumps([entry()]))
    assert load_ai_models("text-to-image:x:true").models[0].model_id == "org/name"


def test_short_form_longer_than_a_path() -> None:
    models = load_ai_models(",".join(["text-to-image:org/name:true"] * 200))
    assert models.models[0].capacity == 200
