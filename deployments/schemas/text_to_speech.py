"""text-to-speech: the runner API's parameters and response.

Names are ai-runner's (runner/src/runner/routes/text_to_speech.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from deployments.schemas.base import MediaFile, Request, Result

MAX_TEXT_CHARS = 10_000
"""About eleven minutes of speech, a file of 20 to 60 MB. It has to be there within ten minutes:
a model that speaks no faster than people do could not read out more."""

DEFAULT_DESCRIPTION = (
    "A male speaker delivers a slightly expressive and animated speech with a moderate speed "
    "and pitch."
)

MAX_DESCRIPTION_CHARS = 2_000
"""Voices are described in a sentence or two."""


class TextToSpeechRequest(Request):
    """Speak a text."""

    text: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT_CHARS)
    ] = Field(json_schema_extra={"default": ""})
    """The runner API's document takes an absent one for an empty one, which is an error here."""
    description: str = Field(default=DEFAULT_DESCRIPTION, max_length=MAX_DESCRIPTION_CHARS)
    """The voice in words. Clients send it to all models: Parler-TTS speaks as it says, the others
    have the voice that they have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToSpeechResult(Result):
    """Speech."""

    audio: MediaFile

    @property
    def files(self) -> Sequence[MediaFile]:
        """The one WAV file."""
        return [self.audio]

    def document(self, urls: Sequence[str]) -> dict[str, Any]:
        """Returns ai-runner's AudioResponse."""
        (url,) = urls
        return {"audio": {"url": url}}
