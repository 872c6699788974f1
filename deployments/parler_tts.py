"""text-to-speech by Parler-TTS: the voice is described in words.

Its library stopped at transformers 4.46, so its replicas run in a Ray runtime environment of
their own (`deployments.registry`) and import transformers there. Everything else is shared with
the other voices. This module imports under both transformers.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deployments.errors import ModelBroken
from deployments.loading import choose_device, find_snapshot
from deployments.schemas.text_to_speech import DEFAULT_DESCRIPTION
from deployments.text_to_speech import TextToSpeechReplica


class ParlerTTSReplica(TextToSpeechReplica):
    """Speech from a text and a description of the voice."""

    max_piece_chars: ClassVar[int] = 300
    """Some 20 seconds; the models end after 30. Each piece may sound like another speaker, unless
    the description names one, so pieces are long."""

    def load(self, snapshot: Path) -> None:
        """Loads model and tokenizers, in 32 bits as the reference does.

        Raises:
            ModelBroken: this process is not in Parler-TTS's environment.
            ModelNotFound: the tokenizer of the descriptions is not there.
        """
        parler_tts = import_parler_tts(self.args.model_id)
        from transformers import AutoTokenizer

        self.imported()
        model = parler_tts.ParlerTTSForConditionalGeneration.from_pretrained(
            snapshot, local_files_only=True
        )
        self.start_up.mark("weights")
        self._model: Any = model.to(choose_device()).eval()
        config = self._model.config
        self.rate_hz = int(config.audio_encoder.sampling_rate)
        # Codes that the codec has no sound for: on CUDA a single one would end the process.
        first, end = config.audio_encoder.codebook_size, config.decoder.eos_token_id
        self._soundless = [code for code in range(first, config.decoder.vocab_size) if code != end]
        self._tokenizer: Any = AutoTokenizer.from_pretrained(snapshot, local_files_only=True)
        self._description_tokenizer = self._tokenizer
        if config.vocab_size != config.text_encoder.vocab_size:
            # Models that read more languages aloud than descriptions have two.
            encoder = config.text_encoder._name_or_path
            self._description_tokenizer = AutoTokenizer.from_pretrained(
                find_snapshot(encoder, self.args.models_dir), local_files_only=True
            )

    def say(
        self, piece: str, description: str, raise_if_cancelled: Callable[[], None]
    ) -> NDArray[np.float32] | None:
        """Returns a piece's samples."""
        import torch

        def criterion(input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            """Stops nothing, and is asked after every step."""
            raise_if_cancelled()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        # An empty description says nothing either.
        voice = self._tokens(self._description_tokenizer, description or DEFAULT_DESCRIPTION)
        text = self._tokens(self._tokenizer, piece)
        with torch.inference_mode():
            audio = self._model.generate(
                **voice,
                **{f"prompt_{name}": tensor for name, tensor in text.items()},
                suppress_tokens=self._soundless,
                stopping_criteria=[criterion],
            )
        return np.asarray(audio.float().cpu().numpy().reshape(-1), dtype=np.float32)

    def _tokens(self, tokenizer: Any, text: str) -> dict[str, Any]:
        encoded = tokenizer(text, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        return {name: encoded[name].to(self._model.device) for name in names}


def import_parler_tts(model_id: str) -> ModuleType:
    """Imports parler_tts without its audio codec's training tools.

    The codec's package imports them, and never uses them to decode. They pin a protobuf that Ray
    Serve does not run with, and a torchaudio that must have been built with torch's CUDA.

    Args:
        model_id: for the message.

    Raises:
        ModelBroken: this environment has no Parler-TTS.
    """
    import torch

    class BaseModel(torch.nn.Module):
        """The codec's base class; the lists are for saving it as a package."""

        INTERN: ClassVar[list[str]] = []
        EXTERN: ClassVar[list[str]] = []

    tools, ml = ModuleType("audiotools"), ModuleType("audiotools.ml")
    vars(ml).update(BaseModel=BaseModel)
    vars(tools).update(ml=ml, AudioSignal=object, STFTParams=object)
    # dac.utils is the codec's command line.
    for stand_in in (tools, ml, ModuleType("dac.utils")):
        sys.modules.setdefault(stand_in.__name__, stand_in)
    try:
        return importlib.import_module("parler_tts")
    except ImportError as error:
        raise ModelBroken(
            f"{model_id} needs the runtime environment that `livepeer-ray serve-config` gives "
            f"its replicas, this process has another ({error})"
        ) from error
