"""Our parameters beside the reference's, and beside what docs/pipelines.md says of them.

The reference's are facts in ai_runner_parameters.json: by pipeline and name, type and default.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import BadRequest
from deployments.registry import PIPELINES
from tests.deployments.inputs import photo, png

REFERENCE: dict[str, dict[str, dict[str, Any]]] = json.loads(
    Path(__file__).with_name("ai_runner_parameters.json").read_text()
)["pipelines"]
PAGE = (Path(__file__).parents[2] / "docs/pipelines.md").read_text()
NOT_HONOURED = re.compile(r"not honoured: \S+")
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "maxLength", "maxItems", "multipleOf")

REQUIRED: dict[str, Any] = {
    "prompt": "a bear",
    "image": png(photo()),
    "audio": b"RIFF",
    "messages": [{"role": "user", "content": "Hello"}],
    "text": "One.",
}
"""A value for each parameter without which there is nothing to do."""


def section(pipeline: str) -> str:
    """What the page says of a pipeline."""
    _, _, rest = PAGE.partition(f"\n## {pipeline}\n")
    return rest.partition("\n## ")[0]


def documented(pipeline: str) -> dict[str, tuple[str, str]]:
    """By parameter: the default and the remark of its row in the page."""

    def rows() -> Iterator[tuple[str, tuple[str, str]]]:
        for row in re.findall(r"^\| (`.*) \|$", section(pipeline), re.M):
            names, defaults, remark = re.split(r" \| ?", row, maxsplit=2)
            # Two parameters that go together share a row.
            parts = zip(names.split(", "), defaults.split(", "), strict=True)
            for name, default in parts if ", " in names else [(names, defaults)]:
                yield name.strip("`"), (default, remark)

    return dict(rows())


def minimal(pipeline: str) -> dict[str, Any]:
    fields = PIPELINES[pipeline].request.model_fields
    return {
        name: REQUIRED[name]
        for name in REFERENCE[pipeline]
        if name in REQUIRED and fields[name].is_required()
    }


def outcome(pipeline: str, request: Mapping[str, Any]) -> object:
    """What becomes of a request's parameters: the parsed request, or who is to blame."""
    try:
        return PIPELINES[pipeline].request.parse(request)
    except BadRequest as error:
        return str(error).partition(":")[0]


def honoured(pipeline: str) -> dict[str, dict[str, Any]]:
    rows = documented(pipeline)
    return {
        name: facts
        for name, facts in REFERENCE[pipeline].items()
        if not NOT_HONOURED.match(rows[name][1])
    }


def test_every_pipeline_of_the_reference_is_served_or_listed() -> None:
    missing = REFERENCE.keys() - PIPELINES.keys()
    assert missing == set(re.findall(r"^`(.+?)`: \S+", section("Not served"), re.M))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_page_lists_the_reference_s_parameters_and_defaults(pipeline: str) -> None:
    assert {name: default for name, (default, _) in documented(pipeline).items()} == {
        name: "required"
        if facts.get("required")
        else f"`{json.dumps(facts['default'])}`"
        if "default" in facts
        else "none"
        for name, facts in REFERENCE[pipeline].items()
    }


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_page_names_every_bound(pipeline: str) -> None:
    properties = PIPELINES[pipeline].request.model_json_schema()["properties"]
    missing = [
        f"{name}: {bound:,.15g}"
        for name, (_, remark) in documented(pipeline).items()
        for key, bound in properties.get(name, {}).items()
        if key in BOUNDS
        if not re.search(rf"(?<![\d,.]){re.escape(f'{bound:,.15g}')}\b", remark)
    ]
    assert missing == []


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_schema_has_the_reference_s_names_and_no_others(pipeline: str) -> None:
    fields = PIPELINES[pipeline].request.model_fields
    assert honoured(pipeline).keys() <= fields.keys()
    # Chosen by `model` where the reference has that.
    assert fields.keys() - REFERENCE[pipeline].keys() <= {"model_id"}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_to_say_a_default_is_to_say_nothing(pipeline: str) -> None:
    for name, facts in honoured(pipeline).items():
        request = {key: value for key, value in minimal(pipeline).items() if key != name}
        said = outcome(pipeline, {**request, name: facts.get("default")})
        assert said == outcome(pipeline, request), name
        # What the reference requires is required here, and nothing else but a text to speak.
        assert (said == name) == (facts.get("required", False) or name == "text")


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_values_of_another_type_are_refused(pipeline: str) -> None:
    others = {"integer": "many", "number": "much", "boolean": "perhaps", "array": "", "file": 5}
    for name, facts in honoured(pipeline).items():
        if name != PIPELINES[pipeline].model_field:
            wrong = others.get(facts["type"], {})
            assert outcome(pipeline, {**minimal(pipeline), name: wrong}) == name
