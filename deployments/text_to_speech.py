"""text-to-speech: VITS and MMS, Bark, SpeechT5 and what else transformers speaks with.

Parler-TTS is a replica of its own, `deployments.parler_tts`.

Models have an end: Bark speaks 13 seconds, SpeechT5 reads some hundred letters, and beyond it
they fail or fall silent. So a text is spoken in pieces, cut where people pause.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deployments.audio_output import encode_wav
from deployments.errors import BadRequest
from deployments.loading import choose_device, choose_dtype
from deployments.replica import Replica
from deployments.schemas.text_to_speech import TextToSpeechRequest, TextToSpeechResult
from deployments.speecht5 import load_vocoder, load_voice

MAX_PIECE_CHARS = 180
"""Spoken in 12 seconds, so Bark's 13 suffice; less than half of SpeechT5's 450 letters."""

PAUSE_S = 0.2
"""Between pieces."""

ENDS_OF_PIECES = (
    re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*"),  # noqa: RUF001 - they are these
    re.compile(r"(?<=[,;:])\s+|(?<=[،、，；：])\s*"),  # noqa: RUF001 - they are these
    re.compile(r"\s+"),
)
"""Where to cut, best first: after a sentence, after a part of one, after a word."""

HALF_PRECISION = frozenset({"bark"})
"""Model types that are large enough to gain from 16 bits. The others are small, and the flows of
VITS and the vocoder of SpeechT5 want 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """Samples of one channel, -1 to 1."""

    samples: NDArray[np.float32]
    rate_hz: int


class TextToSpeechReplica(Replica[TextToSpeechRequest, Spoken, TextToSpeechResult]):
    """Speech from a text.

    Attributes:
        rate_hz: samples a second, set by `load`.
    """

    max_piece_chars: ClassVar[int] = MAX_PIECE_CHARS
    rate_hz: int

    def load(self, snapshot: Path) -> None:
        """Loads the model, and for SpeechT5 its vocoder and its voice.

        Raises:
            ModelNotFound: one of them is not there.
        """
        import torch
        from transformers import AutoConfig, PreTrainedModel, pipeline

        self.imported()
        device = choose_device()
        config = AutoConfig.from_pretrained(snapshot, local_files_only=True)
        half = config.model_type in HALF_PRECISION
        parts: dict[str, Any] = {}
        self._parameters: Mapping[str, Any] = {}
        if config.model_type == "speecht5":
            models_dir = self.args.models_dir
            voice = load_voice(models_dir, size=config.speaker_embedding_dim)
            self._parameters = {"speaker_embeddings": voice.to(device)}
            parts["vocoder"] = load_vocoder(models_dir).to(device)
        self._pipe: Any = pipeline(
            "text-to-audio",
            model=str(snapshot),
            dtype=choose_dtype("", device) if half else torch.float32,
            device=device,
            **parts,
        )
        # transformers reads the weights and moves them in one call.
        self.start_up.mark("weights")
        self.rate_hz = int(self._pipe.sampling_rate)
        self._raise_if_cancelled: Callable[[], None] = lambda: None
        # Bark takes seconds for a piece, in loops of its own that know no stopping criteria, but
        # every step of theirs, and of the other models', enters one of these.
        for part in self._pipe.model.modules():
            if isinstance(part, PreTrainedModel):
                part.register_forward_pre_hook(lambda *_: self._raise_if_cancelled())

    def warm_up_request(self) -> TextToSpeechRequest:
        """Returns a short sentence."""
        return TextToSpeechRequest(text="One, two, three.")

    def describe(self, request: TextToSpeechRequest) -> str:
        """Returns `120 characters`."""
        return f"{len(request.text)} characters"

    def infer(self, request: TextToSpeechRequest, raise_if_cancelled: Callable[[], None]) -> Spoken:
        """Speaks piece by piece.

        Raises:
            BadRequest: there is nothing in the text that this model can say.
        """
        pause = np.zeros(int(PAUSE_S * self.rate_hz), dtype=np.float32)
        spoken: list[NDArray[np.float32]] = []
        for piece in pieces(request.text, self.max_piece_chars):
            raise_if_cancelled()
            samples = self.say(piece, request.description, raise_if_cancelled)
            if samples is not None:
                spoken += [samples, pause]
        if not spoken:
            raise BadRequest("text: it has no character that this model can speak")
        return Spoken(samples=np.concatenate(spoken[:-1]), rate_hz=self.rate_hz)

    def encode(self, request: TextToSpeechRequest, raw: Spoken) -> TextToSpeechResult:  # noqa: ARG002 (the contract of all replicas)
        """Encodes WAV at the model's rate."""
        return TextToSpeechResult(audio=encode_wav(raw.samples, raw.rate_hz))

    def say(
        self,
        piece: str,
        description: str,  # noqa: ARG002 - these models have the voice that they have
        raise_if_cancelled: Callable[[], None],
    ) -> NDArray[np.float32] | None:
        """Returns a piece's samples, None if there is nothing in it that the model can say."""
        if not self._can_say(piece):
            return None
        self._raise_if_cancelled = raise_if_cancelled
        output = self._pipe(piece, forward_params=self._parameters)
        return np.asarray(output["audio"], dtype=np.float32).reshape(-1)

    def _can_say(self, piece: str) -> bool:
        """Whether tokens remain; VITS drops what is not in its alphabet, and fails on nothing."""
        tokenizer = self._pipe.tokenizer
        known = set(tokenizer(piece)["input_ids"]).difference(tokenizer.all_special_ids)
        # SentencePiece begins every text with its sign for a space.
        return any(token.strip("▁ ") for token in tokenizer.convert_ids_to_tokens(sorted(known)))


def pieces(text: str, max_chars: int = MAX_PIECE_CHARS) -> Iterator[str]:
    """Cuts a text into pieces that a model can speak at once, at the best place there is.

    Args:
        text: of any length.
        max_chars: of a piece.
    """
    rest = text.strip()
    while len(rest) > max_chars:
        cut = max_chars
        for ends in ENDS_OF_PIECES:
            found = list(ends.finditer(rest, 0, max_chars))
            if found:
                cut = found[-1].end()
                break
        yield rest[:cut].strip()
        rest = rest[cut:].strip()
    if rest:
        yield rest
