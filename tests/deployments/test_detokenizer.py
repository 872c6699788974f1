"""Text from tokens that come one by one."""

from typing import Any

import pytest

from deployments.detokenizer import Detokenizer
from deployments.tiny_models.language_model import save_language_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One whose tokens are smaller than characters."""
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("llm")
    save_language_model(directory)
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.mark.parametrize("text", ["añb 東京 🦙🦙 naïve", "\n\tfour  spaces    end ", "🦙"])
def test_text_never_breaks_inside_a_character(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) > len(text) or text.isascii()
    detokenizer = Detokenizer(tokenizer)
    pieces = [
        detokenizer.feed(tokens[:end], last=end == len(tokens)) for end in range(1, len(tokens) + 1)
    ]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_is_never_finished_is_shown_as_such(tokenizer: Any) -> None:
    tokens = tokenizer("a🦙")["input_ids"][:-1]
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.feed(tokens[:1], last=False) == "a"
    assert detokenizer.feed(tokens, last=False) == ""
    assert detokenizer.feed(tokens, last=True) == "\ufffd"
