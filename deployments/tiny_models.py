"""Tiny models with random weights, for tests and the demo: `python -m deployments.tiny_models DIR`.

There is no model hub where this project is built. These have the real on-disk format and load
by the same path as real ones; what they draw is noise. The same files come out byte for byte
on every run, so a test may compare results.

A pipeline adds one function that saves its model and one line in `_MODELS`.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.errors import LivepeerRayError

AI_MODELS_FILE = "aiModels.json"
ORGANISATION = "livepeer-ray"
"""Every tiny model's id starts with it, so that no real model is ever overwritten."""


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """One generated model."""

    pipeline: str
    model_id: str
    snapshot: Path
    """The directory that holds its files."""


def write_tiny_models(directory: Path, pipelines: Sequence[str] = ()) -> list[TinyModel]:
    """Writes a model for each pipeline, and an aiModels.json beside them that names them.

    Args:
        directory: becomes a models directory in the Hugging Face cache layout.
        pipelines: names as in the registry; all that there are when empty.

    Raises:
        LivepeerRayError: for a pipeline without a tiny model, or when the directory holds an
            aiModels.json with other models in it.
    """
    pipelines = tuple(dict.fromkeys(pipelines)) or tuple(_MODELS)
    unknown = [pipeline for pipeline in pipelines if pipeline not in _MODELS]
    if unknown:
        raise LivepeerRayError(
            f"no tiny model for {', '.join(unknown)}; there are: {', '.join(_MODELS)}"
        )
    ai_models = directory / AI_MODELS_FILE
    _refuse_foreign(ai_models)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for pipeline in pipelines:
        name, save, _ = _MODELS[pipeline]
        model_id = f"{ORGANISATION}/{name}"
        snapshot = write_repository(directory, model_id, save)
        written.append(TinyModel(pipeline=pipeline, model_id=model_id, snapshot=snapshot))
    entries = [
        {"pipeline": model.pipeline, "model_id": model.model_id, **_MODELS[model.pipeline][2]}
        for model in written
    ]
    ai_models.write_text(json.dumps(entries, indent=2) + "\n")
    return written


def write_repository(directory: Path, model_id: str, save: Callable[[Path], None]) -> Path:
    """Writes one model in the Hugging Face cache layout, replacing what was there.

    Args:
        directory: the models directory.
        model_id: `organisation/name`.
        save: writes the model's files into an empty directory; its random numbers are seeded.

    Returns:
        The snapshot directory, named by a hash of the contents as a commit would be.
    """
    import torch

    repository = directory / f"models--{model_id.replace('/', '--')}"
    shutil.rmtree(repository, ignore_errors=True)
    (repository / "blobs").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as saved, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save(Path(saved))
        hashes = {
            file.relative_to(saved): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(Path(saved).rglob("*"))
            if file.is_file()
        }
        for path, blob in hashes.items():
            shutil.copyfile(Path(saved) / path, repository / "blobs" / blob)
    contents = "".join(f"{path.as_posix()} {blob}\n" for path, blob in hashes.items())
    commit = hashlib.sha256(contents.encode()).hexdigest()[:40]
    snapshot = repository / "snapshots" / commit
    for path, blob in hashes.items():
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(repository / "blobs" / blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def _refuse_foreign(ai_models: Path) -> None:
    """Raises if this aiModels.json is somebody's own."""
    if not ai_models.exists():
        return
    try:
        ids = [entry["model_id"] for entry in json.loads(ai_models.read_text())]
        ours = all(model_id.startswith(f"{ORGANISATION}/tiny-") for model_id in ids)
    except (ValueError, TypeError, KeyError, AttributeError):
        ours = False
    if not ours:
        raise LivepeerRayError(
            f"{ai_models} names models that are not tiny ones; give a directory of its own"
        )


def _clip_tokenizer() -> Any:
    """Returns a CLIP tokenizer of single bytes: 256, the same at a word's end, start and end."""
    from transformers import CLIPTokenizer

    # CLIP's printable stand-ins for bytes: latin-1's own, then code points from 256 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = range(256, 256 + 256 - len(printable))
    letters = [chr(code) for code in (*printable, *others)]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _clip_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="gelu",
    )
    return CLIPTextModel(config).eval()


def _vae() -> Any:
    """Returns a decoder that shrinks by 8, as Stable Diffusion's."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()


def _unet() -> Any:
    """Returns Stable Diffusion's UNet with attention at the two middle resolutions only.

    At the full one, attention over 4096 latents of a 512x512 image is 90 % of a CPU's work.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        sample_size=64,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    ).eval()


def _save_stable_diffusion(directory: Path) -> None:
    """Saves the shape of Stable Diffusion 1.5 in about 1 MB."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer = _clip_tokenizer()
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)


_MODELS: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "text-to-image": (
        "tiny-sd",
        _save_stable_diffusion,
        {"warm": True, "capacity": 2, "ray": {"max_ongoing_requests": 2}},
    ),
}
"""By pipeline: the model's name, what saves it, the rest of its aiModels.json entry."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes tiny models from the command line."""
    from deployments.loading import quiet_libraries

    parser = argparse.ArgumentParser(prog="python -m deployments.tiny_models", description=__doc__)
    parser.add_argument("directory", type=Path, help="where to write models and aiModels.json")
    parser.add_argument("--pipeline", action="append", default=[], choices=sorted(_MODELS))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    try:
        models = write_tiny_models(options.directory, options.pipeline)
    except (LivepeerRayError, OSError) as error:
        parser.error(str(error))
    for model in models:
        logging.getLogger(__name__).info("%s: %s", model.pipeline, model.model_id)


if __name__ == "__main__":
    main()
