"""Tiny models with random weights, for tests and the demo: `python -m deployments.tiny_models DIR`.

There is no model hub where this project is built. These have the real on-disk format and load
by the same path as real ones; what they draw is noise. The same files come out byte for byte
on every run, so a test may compare results.

A pipeline adds one function that saves its model and one line in `RECIPES`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments.errors import LivepeerRayError
from deployments.tiny_models.blip import save_blip
from deployments.tiny_models.instruct_pix2pix import save_instruct_pix2pix
from deployments.tiny_models.language_model import save_language_model
from deployments.tiny_models.repository import write_repository
from deployments.tiny_models.sam2 import save_sam2
from deployments.tiny_models.speech import save_vits, save_whisper
from deployments.tiny_models.stable_diffusion import save_stable_diffusion
from deployments.tiny_models.stable_video import save_stable_video
from deployments.tiny_models.upscaler import save_upscaler

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one pipeline's tiny model is made."""

    name: str
    """Of the model, after `ORGANISATION`."""
    save: Callable[[Path], None]
    """Writes the model's files into an empty directory; torch is seeded."""
    entry: Mapping[str, Any] = field(default_factory=dict)
    """What its aiModels.json entry has beside pipeline, model_id and warm."""


RECIPES: dict[str, Recipe] = {
    "text-to-image": Recipe(
        name="tiny-sd",
        save=save_stable_diffusion,
        entry={"capacity": 2, "ray": {"max_ongoing_requests": 2}},
    ),
    "audio-to-text": Recipe(name="tiny-whisper", save=save_whisper),
    "text-to-speech": Recipe(name="tiny-vits", save=save_vits),
    "llm": Recipe(
        name="tiny-qwen3",
        save=save_language_model,
        entry={"ray": {"max_ongoing_requests": 8}},
    ),
    "image-to-text": Recipe(name="tiny-blip", save=save_blip),
    "segment-anything-2": Recipe(name="tiny-sam2", save=save_sam2),
    "image-to-image": Recipe(name="tiny-instruct-pix2pix", save=save_instruct_pix2pix),
    "image-to-video": Recipe(name="tiny-stable-video", save=save_stable_video),
    "upscale": Recipe(name="tiny-upscaler", save=save_upscaler),
}
"""By pipeline."""


def write_tiny_models(directory: Path, pipelines: Sequence[str] = ()) -> list[TinyModel]:
    """Writes a model for each pipeline, and an aiModels.json beside them that names them.

    Args:
        directory: becomes a models directory in the Hugging Face cache layout.
        pipelines: names as in the registry; all that there are when empty.

    Raises:
        LivepeerRayError: for a pipeline without a tiny model, or when the directory holds an
            aiModels.json with other models in it.
    """
    pipelines = tuple(dict.fromkeys(pipelines)) or tuple(RECIPES)
    unknown = [pipeline for pipeline in pipelines if pipeline not in RECIPES]
    if unknown:
        raise LivepeerRayError(
            f"no tiny model for {', '.join(unknown)}; there are: {', '.join(RECIPES)}"
        )
    ai_models = directory / AI_MODELS_FILE
    _refuse_foreign(ai_models)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for pipeline in pipelines:
        recipe = RECIPES[pipeline]
        model_id = f"{ORGANISATION}/{recipe.name}"
        snapshot = write_repository(directory, model_id, recipe.save)
        written.append(TinyModel(pipeline=pipeline, model_id=model_id, snapshot=snapshot))
    entries = [
        {
            "pipeline": model.pipeline,
            "model_id": model.model_id,
            "warm": True,
            **RECIPES[model.pipeline].entry,
        }
        for model in written
    ]
    ai_models.write_text(json.dumps(entries, indent=2) + "\n")
    return written


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
