"""Tokens to text while they come: `Detokenizer`."""

from collections.abc import Sequence
from typing import Any

UNFINISHED_CHARACTER = "\ufffd"
"""What a tokenizer shows for the first bytes of a character of several tokens."""


class Detokenizer:
    """One answer's tokens to text, as they come.

    A text is handed out once no further token changes it. The window of tokens that is decoded
    begins at the last hand-out but one, since tokenizers treat the first of a text differently.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window = 0
        self._read = 0

    def feed(self, tokens: Sequence[int], *, last: bool) -> str:
        """Returns the text that is new.

        Args:
            tokens: all of the answer so far.
            last: whether nothing follows, so that what is still open is handed out too.
        """
        known = self._decode(tokens[self._window : self._read])
        text = self._decode(tokens[self._window :])
        if text.endswith(UNFINISHED_CHARACTER) and not last:
            return ""
        self._window, self._read = self._read, len(tokens)
        return text[len(known) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)
