"""What a request is refused with: ai-runner's statuses and bodies."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from deployments.errors import BadRequest, InferenceFailed, UnsupportedMedia
from deployments.ingress.errors import Overloaded
from tests.deployments.ingress.conftest import API
from tests.deployments.ingress.requests import body
from tests.deployments.ingress.standin import ONE_EACH, served

GO = {"User-Agent": "Go-http-client/1.1"}
TWO = (served("text-to-image", "org/a"), served("text-to-image", "org/b"))


def message(document: Any) -> str:
    """The text of an HTTPError."""
    (detail,) = document.values()
    (text,) = detail.values()
    assert list(document) == ["detail"]
    assert list(detail) == ["msg"]
    assert isinstance(text, str)
    return text


async def test_a_parameter_of_another_type_is_told_as_fastapi_does(api: API) -> None:
    status, document = await api.post("/text-to-image", json={"width": "wide"})
    assert status == 422
    assert [(each["type"], each["loc"]) for each in document["detail"]] == [
        ("missing", ["body", "prompt"]),
        ("int_parsing", ["body", "width"]),
    ]
    status, document = await api.post("/upscale", data={"prompt": "a bear"})
    assert (status, document["detail"][0]["loc"]) == (422, ["body", "image"])


@pytest.mark.parametrize(
    "text",
    ['{"prompt": "a", "width": NaN}', '{"prompt": "\\ud800"}', '{"prompt": 1e999}', "[1", "\xff"],
)
async def test_json_of_any_kind_is_no_fault_of_ours(api: API, text: str) -> None:
    headers = {"Content-Type": "application/json"}
    status, _ = await api.post("/text-to-image", data=text.encode("latin-1"), headers=headers)
    assert status in (400, 422)


async def test_a_value_out_of_bounds_is_told_in_words(api: API) -> None:
    status, document = await api.post("/text-to-image", json={"prompt": "a", "width": 63})
    assert (status, message(document)[:6]) == (400, "width:")


@pytest.mark.parametrize(
    ("model", "status", "text"),
    [
        ("org/a", 200, ""),
        ("org/c", 400, "configured with org/a, org/b but called with org/c"),
        ("", 400, "say which of org/a, org/b"),
    ],
)
async def test_at_the_root_the_body_says_which_model(
    api: API, model: str, status: int, text: str
) -> None:
    api.serve(*TWO)
    answered, document = await api.post("/text-to-image", **body("text-to-image", model_id=model))
    assert answered == status
    if text:
        assert text in message(document)


async def test_at_its_own_address_the_body_must_not_name_another(api: API) -> None:
    api.serve(*TWO)
    base = "/text-to-image/org/a/text-to-image"
    for model_id, status in (("org/a", 200), ("", 200), ("org/b", 400)):
        request = body("text-to-image", model_id=model_id)
        assert (await api.post(base, **request))[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/upscale",
        "/text-to-image/org/c/text-to-image",
        "/text-to-image/org/a/upscale",
        "/spelling",
        "/text-to-image/org/c/health",
        "/upscale/org/a/version",
    ],
)
async def test_nothing_is_at_other_addresses(api: API, path: str) -> None:
    api.serve(*TWO)
    if path.endswith(("health", "version")):
        status, document = await api.get(path)
    else:
        status, document = await api.post(path, **body("upscale"))
    assert status in (404, 422)
    if status == 404:
        assert message(document)


async def test_another_method_is_refused(api: API) -> None:
    status, document = await api.get("/text-to-image")
    assert (status, message(document)) == (405, "Method Not Allowed")


@pytest.mark.parametrize(
    ("failure", "status", "text"),
    [
        (BadRequest("loras: no such file"), 400, "loras: no such file"),
        (UnsupportedMedia("audio: none"), 415, "audio: none"),
        (InferenceFailed("shape mismatch"), 500, "shape mismatch"),
        (Overloaded("no replica"), 503, "insufficient capacity: no replica"),
        (ZeroDivisionError("secret"), 500, "internal error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_goes_wrong_in_a_model_has_its_status(
    api: API, failure: Exception, status: int, text: str, stream: bool
) -> None:
    api.models.failure = failure
    answered, document = await api.post("/llm", **body("llm", stream=stream))
    assert answered == status
    assert text in message(document)
    assert "secret" not in message(document)


async def a_body_without_a_length() -> AsyncIterator[bytes]:
    for _ in range(40):
        yield b" " * 2**20


async def test_no_more_is_read_than_a_request_may_have(api: API) -> None:
    large = b" " * (17 * 2**20)
    headers = {"Content-Type": "application/json"}
    for data in (io.BytesIO(large), a_body_without_a_length()):
        status, document = await api.post("/text-to-image", data=data, headers=headers)
        assert (status, "larger than" in message(document)) == (413, True)
    long = body("audio-to-text", file=b" " * (51 * 2**20))
    status, document = await api.post("/audio-to-text", **long)
    assert (status, message(document)[:6]) == (413, "audio:")
    assert api.models.requests == []


async def test_a_length_that_is_too_large_is_refused_before_a_byte_is_read(api: API) -> None:
    assert api.http._base_url is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", api.http._base_url.port)
    head = "POST /upscale HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000000\r\n\r\n"
    writer.write(head.encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_a_form_of_many_fields_is_refused(api: API) -> None:
    form = aiohttp.FormData({f"field{number}": "x" for number in range(200)})
    form.add_field("image", b"a file", filename="file")
    assert (await api.post("/image-to-text", data=form))[0] == 400


async def test_go_livepeer_is_told_by_statuses_that_it_knows(api: API) -> None:
    # It takes any other for a result without content, at which its worker ends.
    api.serve(served("text-to-image", "org/a"), running=0)
    request = body("text-to-image")
    assert (await api.post("/text-to-image", **request))[0] == 503
    status, document = await api.post("/text-to-image", headers=GO, **request)
    assert (status, message(document)[:21]) == (500, "insufficient capacity")
    api.models.failure = UnsupportedMedia("audio: none")
    api.serve(*ONE_EACH.values())
    for pipeline, status in (("audio-to-text", 415), ("image-to-text", 400)):
        assert (await api.post(f"/{pipeline}", headers=GO, **body(pipeline)))[0] == status
    gone = "/text-to-image/org/gone/text-to-image"
    assert (await api.post(gone, **request))[0] == 404
    assert (await api.post(gone, headers=GO, **request))[0] == 400
