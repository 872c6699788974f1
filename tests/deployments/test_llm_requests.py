"""What an llm request may be, before any model sees it."""

from typing import Any

import pytest

from deployments.errors import BadRequest
from deployments.schemas.llm import MAX_CONTENT_CHARS, LLMRequest
from tests.deployments.chats import chat


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x" * MAX_CONTENT_CHARS}] * 2}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"stream": "perhaps"}, "stream"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], parameter: str) -> None:
    with pytest.raises(BadRequest, match=rf"^{parameter}: "):
        chat(**parameters)


def test_the_defaults_are_the_runners() -> None:
    request = LLMRequest.parse({"messages": [{"role": "user", "content": "hi"}]})
    assert (request.model, request.max_tokens, request.temperature) == ("", 256, 0.7)
    assert (request.top_p, request.top_k, request.stream) == (1.0, -1, False)
    assert not request.wants_stream
    assert "hi" not in repr(request)
