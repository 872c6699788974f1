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
from pathlib import Path, PurePosixPath
from typing import Any

from deployments.safety import CHECKER_ID
from deployments.speecht5 import VOCODER

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


def companions(pipeline: str, config: Mapping[str, Any]) -> list[str]:
    """Further repositories that a model's replicas read.

    Args:
        pipeline: of the registry.
        config: the content of the model's config.json; empty where it has none.
    """
    if pipeline in DIFFUSION_PIPELINES:
        return [CHECKER_ID]
    return [VOCODER] if config.get("model_type") == "speecht5" else []


def _components(index: Mapping[str, Any]) -> set[str]:
    """The directories that an index names, without the parts that `load_pipeline` leaves out."""
    left_out = {"safety_checker", "feature_extractor"} if "safety_checker" in index else set()
    return {
        name
        for name, value in index.items()
        if isinstance(value, list) and any(value) and name not in left_out
    }
