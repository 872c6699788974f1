"""audio-to-text: the Whisper family.

Recordings longer than the model's window are cut into overlapping chunks, transcribed in
batches and joined where their texts agree, with and without timestamps. Chunk length, batch
sizes and types of single models are ai-runner's
(runner/src/runner/pipelines/audio_to_text.py).
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deployments.audio_input import SAMPLE_RATE_HZ, decode_audio
from deployments.audio_output import encode_wav
from deployments.errors import BadRequest, ModelBroken
from deployments.loading import choose_device, choose_dtype
from deployments.replica import Replica
from deployments.schemas.audio_to_text import AudioToTextRequest, AudioToTextResult, Chunk

logger = logging.getLogger("ray.serve")

CHUNK_S = 30.0
"""Whisper's window."""

CHUNK_S_OF: Mapping[str, float] = {"distil-whisper/distil-large-v3": 25.0}
"""Models whose authors advise another length."""

FLOAT32_MODELS = frozenset({"openai/whisper-medium"})
"""The reference runs them in 32 bits on every device."""

BATCH_SIZE = 16
"""Chunks in one pass."""

WORD_BATCH_SIZE = 4
"""Finding words keeps the attention of every layer to every frame, for the whole batch."""

LONG_FOR_WORDS_S = 200.0
"""From here on chunks are so many that `WORD_BATCH_SIZE` matters."""

MAX_WORDS_S = 3600.0
"""The reference's limit for word timestamps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What transformers' pipeline returned, and how long the recording is."""

    output: Mapping[str, Any]
    duration_s: float


class AudioToTextReplica(Replica[AudioToTextRequest, Heard, AudioToTextResult]):
    """Text from speech."""

    def load(self, snapshot: Path) -> None:
        """Loads the model and what turns sound into its features.

        Raises:
            ModelBroken: a model of another family.
        """
        import torch
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

        self.imported()
        device = choose_device()
        model_id = self.args.model_id
        dtype = torch.float32 if model_id in FLOAT32_MODELS else choose_dtype("", device)
        model = AutoModelForSpeechSeq2Seq.from_pretrained(
            snapshot, dtype=dtype, local_files_only=True
        )
        if model.config.model_type != "whisper":
            raise ModelBroken(
                f"{model_id} is a {model.config.model_type} model; audio-to-text serves the "
                "Whisper family. Name a Whisper model in aiModels.json."
            )
        processor = AutoProcessor.from_pretrained(snapshot, local_files_only=True)
        self.start_up.mark("weights")
        self._pipe: Any = pipeline(
            "automatic-speech-recognition",
            model=model.to(device).eval(),
            tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
            device=device,
        )
        self._chunk_s = CHUNK_S_OF.get(model_id, CHUNK_S)

    def warm_up_request(self) -> AudioToTextRequest:
        """Returns a second of silence."""
        silence = np.zeros(SAMPLE_RATE_HZ, dtype=np.float32)
        return AudioToTextRequest(audio=encode_wav(silence, SAMPLE_RATE_HZ).data)

    def describe(self, request: AudioToTextRequest) -> str:
        """Returns `a file of 120 kB, timestamps: word`."""
        size_kb = math.ceil(len(request.audio) / 1000)
        return f"a file of {size_kb} kB, timestamps: {request.return_timestamps}"

    def infer(self, request: AudioToTextRequest, raise_if_cancelled: Callable[[], None]) -> Heard:
        """Transcribes.

        Raises:
            BadRequest: the file, or word timestamps of a model or a recording without them.
        """
        began_s = time.perf_counter()
        words = request.return_timestamps == "word"
        if words and not getattr(self._pipe.model.generation_config, "alignment_heads", None):
            raise BadRequest(
                "return_timestamps: this model has no `word` timestamps, its "
                "generation_config.json names no alignment_heads; `sentence` works"
            )
        samples = decode_audio(request.audio, raise_if_cancelled)
        duration_s = len(samples) / SAMPLE_RATE_HZ
        if words and duration_s > MAX_WORDS_S:
            raise BadRequest(
                f"return_timestamps: `word` is served up to {MAX_WORDS_S / 60:g} minutes of audio, "
                f"this file has {duration_s / 60:.0f}"
            )
        # The model pads with silence anyway; without a few frames there are no words to align.
        samples = np.pad(samples, (0, max(0, SAMPLE_RATE_HZ - len(samples))))
        options: dict[str, Any] = {}
        if duration_s > self._chunk_s:
            small = words and duration_s > LONG_FOR_WORDS_S
            options = {
                "chunk_length_s": self._chunk_s,
                "batch_size": WORD_BATCH_SIZE if small else BATCH_SIZE,
            }
        config = self._pipe.model.config
        attention = config._attn_implementation
        try:
            output: Mapping[str, Any] = self._pipe(
                samples,
                return_timestamps="word" if words else request.return_timestamps == "sentence",
                generate_kwargs={
                    "num_beams": 1,
                    # Whisper's own limit a window (openai/whisper, decoding.py, sample_len).
                    "max_new_tokens": config.max_target_positions // 2,
                    "stopping_criteria": [_stop_when(raise_if_cancelled)],
                },
                **options,
            )
        finally:
            # Word timestamps switch the model to its slowest attention, and leave it there.
            config._attn_implementation = attention
        took_s = time.perf_counter() - began_s
        logger.info(
            "transcribed %.1f s of sound in %.2f s: real-time factor %.3f",
            duration_s,
            took_s,
            took_s / max(duration_s, 1 / SAMPLE_RATE_HZ),
        )
        return Heard(output=output, duration_s=duration_s)

    def encode(self, request: AudioToTextRequest, raw: Heard) -> AudioToTextResult:  # noqa: ARG002 (the contract of all replicas)
        """Takes over text and chunks, with times that lie in the recording."""

        def within(seconds: float | None) -> float | None:
            # Whisper's windows end in silence that is not in the file, and it may hear some there.
            return None if seconds is None else round(min(float(seconds), raw.duration_s), 2)

        return AudioToTextResult(
            text=raw.output["text"],
            chunks=tuple(
                Chunk(text=chunk["text"], start_s=within(start), end_s=within(end))
                for chunk in raw.output.get("chunks", ())
                for start, end in (chunk["timestamp"],)
            ),
        )


def _stop_when(raise_if_cancelled: Callable[[], None]) -> Callable[..., Any]:
    """Returns a stopping criterion that stops nothing and is asked after every token."""
    import torch

    def criterion(input_ids: "torch.Tensor", _scores: Any, **_: Any) -> "torch.Tensor":
        raise_if_cancelled()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return criterion
