"""What SpeechT5 needs beside itself: a vocoder, and a voice to speak with.

The model ends with a spectrogram, and was trained to imitate a speaker who is given as an
x-vector. Neither is part of its repository. Both are read from the models directory, from where
transformers' own example takes them (docs, tasks/text-to-speech); nothing is made up for what
is missing, as a vector of zeros is a voice that the model never heard.
"""

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.errors import ModelBroken
from deployments.loading import find_snapshot, model_errors

if TYPE_CHECKING:
    import torch

VOCODER = "microsoft/speecht5_hifigan"

VOICES = "Matthijs/cmu-arctic-xvectors"
"""A data set: an x-vector for each utterance of CMU ARCTIC, as `.npy` files in one archive."""

ARCHIVE = "spkrec-xvect.zip"

VOICE = "cmu_us_slt_arctic-wav-arctic_a0508.npy"
"""A US English woman: number 7306 of the data set in transformers' example."""


def load_vocoder(models_dir: Path) -> Any:
    """Returns the model that turns spectrograms into sound, on the CPU.

    Raises:
        ModelError: it is missing or does not load.
    """
    from transformers import SpeechT5HifiGan

    snapshot = find_snapshot(VOCODER, models_dir)
    with model_errors(VOCODER, snapshot):
        return SpeechT5HifiGan.from_pretrained(snapshot, local_files_only=True).eval()


def load_voice(models_dir: Path, *, size: int) -> "torch.Tensor":
    """Returns the voice as 1 x `size`, on the CPU.

    Args:
        models_dir: where the data set is looked for.
        size: of the vectors that the model takes.

    Raises:
        ModelError: the data set is missing, broken, or of another size.
    """
    import torch

    snapshot = find_snapshot(VOICES, models_dir, repo_type="dataset")
    with model_errors(VOICES, snapshot), zipfile.ZipFile(snapshot / ARCHIVE) as archive:
        names = [name for name in archive.namelist() if Path(name).name == VOICE]
        if not names:
            raise ModelBroken(f"{VOICES}: {snapshot / ARCHIVE} has no {VOICE}")
        voice = np.load(io.BytesIO(archive.read(names[0])), allow_pickle=False)
        if voice.shape != (size,):
            raise ModelBroken(f"{VOICES}: {VOICE} is {voice.shape}, the model wants ({size},)")
        return torch.from_numpy(voice.astype(np.float32))[None]
