"""Which files of a Hugging Face repository the replicas load, and which further repositories.

Repositories hold the same weights several times: in 16 and in 32 bits, as safetensors and as
pickles, for other frameworks, and all in one file. `from_pretrained` reads one of each by its
name (diffusers, utils/constants.py; transformers, utils/hub.py); which, `deployments.loading`
decides: 16 bits where a diffusers model has them.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deployments.safety import CHECKER_ID
from deployments.special_models import special
from deployments.speecht5 import ARCHIVE, VOCODER, VOICES

INDEX = "model_index.json"
"""What a diffusers repository consists of. Others are transformers'."""

CONFIG = "config.json"

DIFFUSION_PIPELINES = frozenset({"text-to-image", "image-to-image", "image-to-video", "upscale"})

_SETTINGS = frozenset({".json", ".txt", ".model", ".jinja", ".spm"})
"""Configurations and tokenizers. They are small, and taken even where one may go unread."""

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:-\d{5}-of-\d{5})?(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?"
    r"\.(?P<format>safetensors|bin)"
)
"""The number of a part stands before or after the variant."""

_OF_DIFFUSERS = (
    ("fp16", "safetensors"),
    (None, "safetensors"),
    ("fp16", "bin"),
    (None, "bin"),
)
_OF_TRANSFORMERS = ((None, "safetensors"), (None, "bin"))
"""Which weights of a directory, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository of the hub, and what of it replicas read."""

    id: str
    repo_type: str = "model"
    files: tuple[str, ...] = ()
    """These and no others; none here means those that `files_to_load` finds."""
    weights: bool = True
    """False: only the tokenizer is read."""


def files_to_load(files: Iterable[str], *, index: Mapping[str, Any] | None) -> list[str]:
    """Returns those of a repository's files that a replica loads, sorted.

    Args:
        files: their paths in the repository.
        index: the content of its model_index.json; None where it has none.
    """
    paths = [PurePosixPath(file) for file in files]
    directories = {""} if index is None else {"", *_components(index)}
    weights: dict[str, dict[tuple[str | None, str], list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    found: list[str] = []
    for path in paths:
        directory = "" if len(path.parts) == 1 else str(path.parent)
        if directory not in directories:
            continue
        if path.suffix in _SETTINGS:
            found.append(str(path))
        # A diffusers repository's own directory holds the whole model in one file.
        elif (match := _WEIGHTS.fullmatch(path.name)) and (directory or index is None):
            weights[directory][match["variant"], match["format"]].append(str(path))
    for kinds in weights.values():
        best = _OF_TRANSFORMERS if index is None else _OF_DIFFUSERS
        found += next((kinds[kind] for kind in best if kind in kinds), [])
    return sorted(found)


def weight_files(snapshot: Path) -> list[Path]:
    """Returns the files with the weights that a replica loads from a directory."""
    index = snapshot / INDEX
    files = files_to_load(
        (str(file.relative_to(snapshot)) for file in snapshot.rglob("*")),
        index=json.loads(index.read_text()) if index.is_file() else None,
    )
    return [snapshot / file for file in files if has_weights([file])]


def has_weights(files: Iterable[str]) -> bool:
    """Whether there are weights among files from `files_to_load`."""
    return any(PurePosixPath(file).suffix in (".safetensors", ".bin") for file in files)


def own_repository(model_id: str) -> Repository:
    """The repository that most of a model's files are in."""
    return Repository(id=special(model_id).base or model_id)


def companions(pipeline: str, model_id: str, config: Mapping[str, Any]) -> list[Repository]:
    """Further repositories that a model's replicas read.

    Args:
        pipeline: of the registry.
        model_id: of the entry.
        config: the content of the config.json in its own repository; empty where it has none.
    """
    if pipeline in DIFFUSION_PIPELINES:
        parts = special(model_id)
        unet = [Repository(id=parts.unet[0], files=(parts.unet[1],))] if parts.unet else []
        vae = [Repository(id=parts.vae)] if parts.vae else []
        return [*unet, *vae, Repository(id=CHECKER_ID)]
    if config.get("model_type") == "speecht5":
        voices = Repository(id=VOICES, repo_type="dataset", files=(ARCHIVE,))
        return [Repository(id=VOCODER), voices]
    if config.get("model_type") == "parler_tts":
        # As in deployments.parler_tts: one tokenizer does for both, or there are two.
        encoder = config["text_encoder"]
        if config["vocab_size"] != encoder["vocab_size"]:
            return [Repository(id=encoder["_name_or_path"], weights=False)]
    return []


def _components(index: Mapping[str, Any]) -> set[str]:
    """The directories that an index names, without the parts that `load_pipeline` leaves out."""
    left_out = {"safety_checker", "feature_extractor"} if "safety_checker" in index else set()
    return {
        name
        for name, value in index.items()
        if isinstance(value, list) and any(value) and name not in left_out
    }
