"""A diffusers pipeline on a device, from files that may lie in several repositories."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.errors import ModelNotFound
from deployments.loading import choose_device, choose_dtype, find_file, find_snapshot, model_errors
from deployments.model_files import INDEX, weight_files
from deployments.special_models import special
from deployments.start_up import StartUp

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("ray.serve")
"""Serve gives only this logger a handler in a replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Where everything that a pipeline is made of lies."""

    pipeline: Path
    """A directory with a model_index.json."""
    unet: Path | None = None
    """The file that takes the place of the pipeline's UNet."""
    vae: Path | None = None
    """The directory that takes the place of the pipeline's VAE."""

    def weights(self) -> list[Path]:
        """Returns the files with weights that are loaded."""
        replaced = {name for name in ("unet", "vae") if getattr(self, name) is not None}
        found = [file for file in weight_files(self.pipeline) if file.parent.name not in replaced]
        if self.unet is not None:
            found.append(self.unet)
        if self.vae is not None:
            found += weight_files(self.vae)
        return found


def find_files(model_id: str, models_dir: Path) -> ModelFiles:
    """Finds all files of a model.

    Raises:
        ModelNotFound: with the command that downloads what is missing.
    """
    parts = special(model_id)
    try:
        return ModelFiles(
            pipeline=find_snapshot(parts.base or model_id, models_dir),
            unet=find_file(*parts.unet, models_dir) if parts.unet else None,
            vae=find_snapshot(parts.vae, models_dir) if parts.vae else None,
        )
    except ModelNotFound as error:
        others = ", ".join(filter(None, (parts.base, parts.unet and parts.unet[0], parts.vae)))
        needs = f"{model_id} needs files of {others}: " if others else ""
        raise ModelNotFound(f"{needs}{error}") from None


def pipeline_class(snapshot: Path, classes: Mapping[str, str], *, otherwise: str) -> Any:
    """Returns the diffusers class that loads these files.

    Imports that class alone: diffusers' own choice, its auto pipelines, imports all that they may
    choose from, a second or more of CPU time.

    Args:
        snapshot: with a model_index.json.
        classes: by the class that this names.
        otherwise: for all other models.
    """
    import diffusers

    named = json.loads((snapshot / INDEX).read_text())["_class_name"]
    return getattr(diffusers, classes.get(named, otherwise))


def load_pipeline(factory: Any, files: ModelFiles, start_up: StartUp | None = None) -> Any:
    """Loads a diffusers pipeline onto this process's device.

    A bundled safety checker is left out: it would black images out, where the runner API only
    flags them (`deployments.safety`).

    Args:
        factory: a diffusers class with `from_pretrained`, `AutoPipelineForText2Image` say.
        files: the model's, from `find_files`.
        start_up: takes the times, if somebody wants them.
    """
    start_up = start_up or StartUp()
    device = choose_device()
    index = json.loads((files.pipeline / INDEX).read_text())
    dtype = choose_dtype(index["_class_name"], device)
    variant = choose_variant(files.pipeline, device)
    logger.info("loading %s on %s as %s, variant %s", index["_class_name"], device, dtype, variant)
    options: dict[str, Any] = {}
    if "safety_checker" in index:
        options = {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
    if files.unet is not None:
        config = files.pipeline / "unet"
        options["unet"] = _load_unet(files.unet, config=config, dtype=dtype, device=device)
    if files.vae is not None:
        options["vae"] = _load_vae(files.vae, dtype=dtype)
    pipe = factory.from_pretrained(
        files.pipeline, dtype=dtype, variant=variant, local_files_only=True, **options
    )
    start_up.mark("weights")
    pipe.to(device)
    start_up.mark("device")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def choose_variant(snapshot: Path, device: "torch.device") -> str | None:
    """Returns diffusers' `variant`: `fp16` for `*.fp16.safetensors`, None for the plain files.

    On a GPU the 16-bit files are taken wherever there are any: half the reading for the same
    weights. On a CPU they are taken only if a component has no others, as after the Livepeer
    download scripts, and widened to float32. Components without such files load the plain
    ones in either case.
    """
    components: dict[str, set[bool]] = {}
    for file in snapshot.glob("*/*"):
        if file.suffix in (".safetensors", ".bin"):
            # Sharded files are called model.fp16-00001-of-00002.safetensors.
            components.setdefault(file.parent.name, set()).add(".fp16" in file.name)
    wanted = {True} if device.type == "cpu" else {True, False}
    return (
        "fp16" if any(True in kinds and kinds <= wanted for kinds in components.values()) else None
    )


def _load_unet(file: Path, *, config: Path, dtype: "torch.dtype", device: "torch.device") -> Any:
    """Returns a UNet of this configuration with the weights of one file."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    # Without memory for weights that are replaced at once: SDXL's are 10 GB as they are made.
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(config))
    with model_errors(file.name, file.parent):
        unet.load_state_dict(load_file(file, device=str(device)), assign=True)
    return unet.to(dtype).eval()


def _load_vae(directory: Path, *, dtype: "torch.dtype") -> Any:
    from diffusers import AutoencoderKL

    with model_errors("the external VAE", directory):
        return AutoencoderKL.from_pretrained(directory, dtype=dtype, local_files_only=True)
