"""text-to-speech: VITS and MMS, Bark, SpeechT5 and what else transformers speaks with.

Models have an end: Bark speaks 13 seconds, SpeechT5 reads some hundred letters, and beyond it
they fail or fall silent. So a text is spoken in pieces, cut where people pause.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.audio_output import encode_wav
from deployments.errors import BadRequest, ModelBroken
from deployments.loading import choose_device, choose_dtype, find_snapshot
from deployments.model_args import ModelArgs
from deployments.replica import Replica
from deployments.schemas.text_to_speech import TextToSpeechRequest, TextToSpeechResult

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

SPEECHT5_VOCODER = "microsoft/speecht5_hifigan"
"""SpeechT5 itself ends with a spectrogram."""

NOT_YET = (
    "{model_id}: Parler-TTS is not served yet, it needs an older transformers than this project's. "
    "VITS, MMS, Bark and SpeechT5 models are."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """Samples of one channel, -1 to 1."""

    samples: NDArray[np.float32]
    rate_hz: int


class TextToSpeechReplica(Replica[TextToSpeechRequest, Spoken, TextToSpeechResult]):
    """Speech from a text."""

    def __init__(self, *, args: ModelArgs) -> None:
        # Before its gigabytes are looked for, and an operator is told to download them.
        if args.model_id.startswith("parler-tts/"):
            raise ModelBroken(NOT_YET.format(model_id=args.model_id))
        super().__init__(args=args)

    def load(self, snapshot: Path) -> None:
        """Loads the model, and for SpeechT5 its vocoder.

        Raises:
            ModelNotFound: the vocoder is not there.
        """
        import torch
        from transformers import AutoConfig, SpeechT5HifiGan, pipeline

        device = choose_device()
        config = AutoConfig.from_pretrained(snapshot, local_files_only=True)
        half = config.model_type in HALF_PRECISION
        parts: dict[str, Any] = {}
        self._parameters: Mapping[str, Any] = {}
        if config.model_type == "speecht5":
            vocoder = SpeechT5HifiGan.from_pretrained(
                find_snapshot(SPEECHT5_VOCODER, self.args.models_dir), local_files_only=True
            )
            parts["vocoder"] = vocoder.to(device).eval()
            # transformers' own example of a voice; published ones are data sets, not models.
            voice = torch.zeros((1, config.speaker_embedding_dim), device=device)
            self._parameters = {"speaker_embeddings": voice}
        self._pipe: Any = pipeline(
            "text-to-audio",
            model=str(snapshot),
            dtype=choose_dtype("", device) if half else torch.float32,
            device=device,
            **parts,
        )

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
        rate_hz = int(self._pipe.sampling_rate)
        pause = np.zeros(int(PAUSE_S * rate_hz), dtype=np.float32)
        spoken: list[NDArray[np.float32]] = []
        for piece in pieces(request.text):
            raise_if_cancelled()
            if not self._can_say(piece):
                continue
            samples = np.asarray(
                self._pipe(piece, forward_params=self._parameters)["audio"], dtype=np.float32
            )
            spoken += [samples.reshape(-1), pause]
        if not spoken:
            raise BadRequest("text: it has no character that this model can speak")
        return Spoken(samples=np.concatenate(spoken[:-1]), rate_hz=rate_hz)

    def encode(self, request: TextToSpeechRequest, raw: Spoken) -> TextToSpeechResult:  # noqa: ARG002 (the contract of all replicas)
        """Encodes WAV at the model's rate."""
        return TextToSpeechResult(audio=encode_wav(raw.samples, raw.rate_hz))

    def _can_say(self, piece: str) -> bool:
        """Whether tokens remain; VITS drops what is not in its alphabet, and fails on nothing."""
        tokenizer = self._pipe.tokenizer
        tokens = set(tokenizer(piece)["input_ids"])
        return bool(tokens.difference(tokenizer.all_special_ids))


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
