"""Our OpenAPI document beside ai-runner's.

The reference's is facts in ai_runner_api.json, and its parameters in ai_runner_parameters.json:
what a client that was generated from it relies on.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.ingress.app import create_app
from deployments.ingress.service import Service
from deployments.registry import PIPELINES
from tests.deployments.ingress.conftest import Application
from tests.deployments.ingress.standin import StandIn
from tests.e2e.spelling import SPELLING

HERE = Path(__file__)
API: dict[str, Any] = json.loads(HERE.with_name("ai_runner_api.json").read_text())
PARAMETERS: dict[str, Any] = json.loads(
    (HERE.parents[1] / "ai_runner_parameters.json").read_text()
)["pipelines"]


@pytest.fixture(scope="module")
def document(application: Application) -> dict[str, Any]:
    """Our document, as a client gets it."""
    written: dict[str, Any] = json.loads(json.dumps(application.app.openapi()))
    return written


def shape(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """A schema in short: objects by name, an optional one's name with a `?`, lists, types."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return shape(document["components"]["schemas"][name], document)
    if "enum" in schema:
        return "|".join(sorted(schema["enum"]))
    if "anyOf" in schema:
        return "|".join(sorted(str(shape(each, document)) for each in schema["anyOf"]))
    if "properties" in schema:
        required = schema.get("required", ())
        return {
            name if name in required else f"{name}?": shape(each, document)
            for name, each in schema["properties"].items()
        }
    if "additionalProperties" in schema:
        return {"*": shape(schema["additionalProperties"], document)}
    if schema.get("type") == "array":
        return [shape(schema["items"], document)]
    return schema.get("format", schema.get("type", "anything"))


def json_of(part: dict[str, Any], document: dict[str, Any]) -> Any:
    """The shape of a JSON answer."""
    return shape(part["content"]["application/json"]["schema"], document)


@pytest.mark.parametrize("path", API["operations"])
def test_an_operation_is_the_reference_s(path: str, document: dict[str, Any]) -> None:
    facts = API["operations"][path]
    operation = document["paths"][path][facts["method"]]
    assert list(document["paths"][path]) == [facts["method"]]
    assert operation["operationId"] == facts["operation_id"]
    assert operation.get("tags") == facts.get("tags")
    assert operation.get("security") == facts.get("security")
    # Where it has further ones, they are for what it does not tell apart or leaves out.
    assert set(facts["statuses"]) <= set(operation["responses"])
    assert json_of(operation["responses"]["200"], document) == API["shapes"][facts["answer"]]
    for status in set(operation["responses"]) - {"200"}:
        error = "HTTPValidationError" if status == "422" else "HTTPError"
        assert json_of(operation["responses"][status], document) == API["shapes"][error]
    if "body" in facts:
        assert operation["requestBody"]["required"]
        ((media_type, content),) = operation["requestBody"]["content"].items()
        assert media_type == facts["media_type"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{facts['body']}"}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_parameters_have_the_reference_s_names_types_and_defaults(
    pipeline: str, document: dict[str, Any]
) -> None:
    body = document["components"]["schemas"][API["operations"][f"/{pipeline}"]["body"]]
    ours = {}
    for name, schema in body["properties"].items():
        facts = {"type": "file" if schema.get("format") == "binary" else schema["type"]}
        if "default" in schema:
            facts["default"] = schema["default"]
        if name in body.get("required", ()):
            facts["required"] = True
        ours[name] = facts
    assert ours == PARAMETERS[pipeline]


def test_there_are_no_other_paths(document: dict[str, Any]) -> None:
    assert document["paths"].keys() == API["operations"].keys()


def test_every_parameter_is_described(document: dict[str, Any]) -> None:
    lacking = [
        (name, parameter)
        for name, schema in document["components"]["schemas"].items()
        if name.startswith("Body_") or name.endswith(("Params", "Request"))
        for parameter, each in schema["properties"].items()
        if not each.get("description")
    ]
    assert lacking == []


def test_bounds_are_told(document: dict[str, Any]) -> None:
    width = document["components"]["schemas"]["TextToImageParams"]["properties"]["width"]
    assert (width["minimum"], width["maximum"], width["multipleOf"]) == (64, 2048, 8)


def test_a_tenth_pipeline_needs_no_line_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.app.PIPELINES", {SPELLING.name: SPELLING})
    document = create_app(Service(StandIn())).openapi()
    operation = document["paths"]["/spelling"]["post"]
    assert operation["operationId"] == "genSpelling"
    assert operation["description"] == "Spell a text."
    parameters = document["components"]["schemas"]["SpellingParams"]["properties"]
    assert list(parameters) == ["model_id", "text", "times"]
    assert json_of(operation["responses"]["200"], document) == {"text": "string"}
