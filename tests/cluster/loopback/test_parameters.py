"""Callers' requests that are not what a route takes."""

from typing import Any

import pytest

from cluster.loopback import LoopbackOrchestrator
from tests.cluster.loopback.cases import FILE, MESSAGES, NUMBERS
from tests.cluster.loopback.wire import Caller, capabilities, registered


def form(*parts: str) -> bytes:
    """A form of parts, each from its first header on."""
    return "".join(f"--b\r\n{part}\r\n" for part in parts).encode() + b"--b--\r\n"


IMAGE = 'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\nx'
FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        pytest.param("application/json", b"{}", "is not multipart/form-data", id="json"),
        pytest.param("multipart/form-data", form(IMAGE), "with a boundary", id="no boundary"),
        pytest.param("multipart/mixed; boundary=b", form(IMAGE), "is not multipart", id="mixed"),
        pytest.param(";", form(IMAGE), "is not a media type", id="no type"),
        pytest.param(FORM, b"", "does not start with its boundary", id="empty"),
        pytest.param(FORM, form(IMAGE)[:-6], "unexpected EOF", id="cut off"),
        pytest.param(FORM, form("a: b\r\n\r\nx"), "without Content-Disposition", id="no name"),
        pytest.param(
            FORM,
            form(IMAGE.replace("form-data", "attachment")),
            "without Content-Disposition",
            id="attachment",
        ),
        pytest.param(FORM, form(IMAGE.replace("image", "audio")), "image: must", id="other field"),
        pytest.param(
            FORM, form(IMAGE.replace('; filename="a"', "")), "image: must", id="file as text"
        ),
    ],
)
async def test_a_bad_form_is_refused(
    orchestrator: LoopbackOrchestrator, caller: Caller, content_type: str, body: bytes, says: str
) -> None:
    async with registered(orchestrator, capabilities(capability=NUMBERS["upscale"])):
        reply = await caller.post_form("upscale", body, content_type)
        assert reply.status == 400
        assert says in reply.error
        assert (await caller.status())["jobs"]["handed_out"] == 0


@pytest.mark.parametrize(
    ("pipeline", "given", "named"),
    [
        ("image-to-image", ("seed", "1.0"), 'seed: "1.0"'),
        ("image-to-image", ("seed", ""), 'seed: ""'),
        ("image-to-image", ("seed", str(2**63)), "seed"),
        ("image-to-image", ("strength", "nan"), "strength"),
        ("image-to-image", ("strength", "1e39"), "strength"),
        ("image-to-image", ("strength", "1e999"), "strength"),
        ("image-to-image", ("safety_check", "yes"), "safety_check"),
        ("image-to-video", ("fps", "8fps"), "fps"),
        ("text-to-speech", {}, "text: must be given"),
        ("text-to-speech", {"text": 1}, "text"),
        ("llm", {}, "messages: must be given"),
        ("llm", {"messages": None}, "messages: must be given"),
        ("llm", {"messages": []}, "messages: []"),
        ("llm", {"messages": "hello"}, 'messages: "hello"'),
        ("llm", {"messages": ["hello"]}, 'messages[0]: "hello"'),
        ("llm", {"messages": [*MESSAGES, {"content": 1}]}, "messages[1].content: 1"),
        ("llm", {"messages": [{"role": []}]}, "messages[0].role"),
        ("llm", {"messages": MESSAGES, "stream": "yes"}, "stream"),
        ("llm", {"messages": MESSAGES, "top_k": 1.0}, "top_k"),
        ("llm", {"messages": MESSAGES, "model": 1}, "model"),
    ],
)
async def test_a_bad_parameter_is_named(
    orchestrator: LoopbackOrchestrator,
    caller: Caller,
    pipeline: str,
    given: tuple[str, str] | dict[str, Any],
    named: str,
) -> None:
    async with registered(orchestrator, capabilities(capability=NUMBERS[pipeline])):
        if isinstance(given, tuple):
            reply = await caller.upload(pipeline, FILE, [given])
        else:
            reply = await caller.generate(given, pipeline=pipeline)
        assert reply.status == 400
        assert reply.error.startswith(named)
        assert (await caller.status())["jobs"]["handed_out"] == 0
