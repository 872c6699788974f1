"""aiModels.json under generated files: nothing escapes, nothing is lost, no token is shown."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.ai_models import AIModels, ModelKey, format_table, load_ai_models
from cluster.ai_models_entry import parse_entry
from cluster.ai_models_source import SHORT_FORM
from cluster.errors import AIModelsError
from deployments.registry import PIPELINES

TOKEN = "tok-3f9a1c"

FIELDS = (
    "pipeline",
    "model_id",
    "url",
    "token",
    "warm",
    "capacity",
    "optimization_flags",
    "ray",
    "gateway",
    "price_per_unit",
    "pixels_per_unit",
    "currency",
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.text(st.characters(categories=["Cs"]), max_size=2)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
field_names = st.sampled_from(FIELDS) | st.sampled_from([name.upper() for name in FIELDS])
likely = st.sampled_from(
    ["text-to-image", "upscale", "org/name", "org/a-turbo", "http://h:1", "true", True, 1, 0.5, {}]
)
flags = st.dictionaries(st.sampled_from(["SFAST", "DEEPCACHE", "OTHER"]), likely | scalars)
ray = st.dictionaries(
    st.sampled_from(
        ["num_gpus", "max_replicas", "max_ongoing_requests", "accelerator_type", "other"]
    ),
    likely | scalars,
)
near_entries = st.dictionaries(field_names, likely | anything | flags | ray, max_size=8)
near_valid = st.fixed_dictionaries(
    {
        "pipeline": st.sampled_from(sorted(PIPELINES)),
        "model_id": st.sampled_from(["a/b", "c-turbo"]),
    },
    optional={
        "url": st.sampled_from(["", "http://h:1", "http://h:2/"]),
        "token": st.just(TOKEN),
        "warm": st.booleans(),
        "capacity": st.integers(-1, 3),
        "optimization_flags": flags,
        "ray": ray,
        "price_per_unit": likely,
    },
)


def load(document: object) -> AIModels:
    return load_bytes(json.dumps(document).encode())


def load_bytes(data: bytes) -> AIModels:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "aiModels.json"
        path.write_bytes(data)
        return load_ai_models(path)


def outcome(document: object) -> tuple[str, Sequence[str]]:
    """Returns all the text that a document leads to, and its problems."""
    try:
        models = load(document)
    except AIModelsError as error:
        return f"{error}{error!r}", error.problems
    return "\n".join((format_table(models), repr(models), *models.warnings)), ()


@given(anything | st.lists(near_entries, max_size=4) | st.lists(near_valid, max_size=5))
def test_any_json_is_models_or_problems(document: object) -> None:
    text, problems = outcome(document)
    assert all(problem.strip() == problem and "\n" not in problem for problem in problems)
    text.encode("utf-8")  # no lone surrogates: it can be printed


@given(st.binary() | st.text().map(str.encode))
@example(b"\xef\xbb\xbf[]")
def test_any_bytes_are_models_or_problems(data: bytes) -> None:
    with pytest.raises(AIModelsError):
        load_bytes(data)


@given(st.text() | st.lists(st.text(alphabet="ab/:,~.\0", max_size=9)).map(":".join))
@example(SHORT_FORM)
@example("~\0")
@example("~\ud800/x.json")
def test_any_source_is_models_or_problems(source: str) -> None:
    with pytest.raises(AIModelsError):
        load_ai_models(source)


@given(st.lists(near_valid | near_entries, min_size=1, max_size=5))
def test_tokens_are_never_shown(document: list[dict[str, Any]]) -> None:
    # Under every field it is checked that the message does not hold what stands in another.
    with_tokens = [{**entry, "token": TOKEN} for entry in document]
    assert TOKEN not in outcome(with_tokens)[0]
    assert TOKEN not in outcome([{**entry, "token": [TOKEN]} for entry in document])[0]


valid_entries = st.fixed_dictionaries(
    {
        "pipeline": st.sampled_from(sorted(PIPELINES)),
        "model_id": st.from_regex(r"[a-z]{1,2}/[a-c]", fullmatch=True),
    },
    optional={"capacity": st.integers(0, 50), "url": st.sampled_from(["", "http://h:1"])},
)


@given(st.lists(valid_entries, min_size=1, max_size=12))
def test_capacity_and_order_are_kept(document: list[dict[str, Any]]) -> None:
    def place(entry: dict[str, Any]) -> tuple[ModelKey, str | None]:
        return ModelKey(entry["pipeline"], entry["model_id"]), entry.get("url") or None

    wanted: Counter[tuple[ModelKey, str | None]] = Counter()
    for entry in document:
        wanted[place(entry)] += entry.get("capacity", 0) or 1

    models = load(document).models

    assert {(model.key, model.url): model.capacity for model in models} == wanted
    assert [(model.key, model.url) for model in models] == list(dict.fromkeys(map(place, document)))


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9]{1,8}(/[A-Za-z0-9]{1,8})?", fullmatch=True),
        st.tuples(st.sampled_from(["1", "t", "True"]), st.just(True))
        | st.tuples(st.sampled_from(["0", "f", "FALSE"]), st.just(False)),
        min_size=1,
    )
)
def test_the_short_form_says_what_the_file_says(warm_of: dict[str, tuple[str, bool]]) -> None:
    short = ",".join(f"text-to-image:{name}:{text}" for name, (text, _) in warm_of.items())
    document = [
        {"pipeline": "text-to-image", "model_id": name, "warm": warm}
        for name, (_, warm) in warm_of.items()
    ]
    assert load_ai_models(short).models == load(document).models


@given(
    st.text(alphabet="aZ09_-./gité", min_size=1, max_size=12) | st.from_regex(r"a{94,98}/b{94,98}")
)
@example("a.git")
@example("org/a.git/")
@example("a..b/c")
@example("a--b")
@example("/a")
@example("a" * 96)
@example("a" * 97)
def test_model_ids_are_hugging_face_s(model_id: str) -> None:
    try:
        validate_repo_id(model_id)
        valid = True
    except HFValidationError:
        valid = False
    parsed = parse_entry({"pipeline": "text-to-image", "model_id": model_id})
    assert (parsed.model is not None) == valid
