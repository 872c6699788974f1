"""From a model id to a diffusers pipeline on a device, without a network.

Models lie in the Hugging Face cache layout below one directory, as `hf download --cache-dir`
and the Livepeer download scripts leave them:

    models--org--name/refs/main                 a commit
    models--org--name/snapshots/<commit>/...    links into blobs/
    models--org--name/blobs/<hash>

Whatever goes wrong is a `ModelError` that names the model, the directory and the remedy.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.errors import ModelBroken, ModelError, ModelNotFound

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("ray.serve")
"""Serve gives only this logger a handler in a replica."""

BFLOAT16_FAMILIES = ("Flux", "StableDiffusion3")
"""Pipeline classes whose transformers overflow float16; their authors publish bfloat16."""


def find_snapshot(model_id: str, models_dir: Path) -> Path:
    """Returns the directory that holds the model's files.

    Raises:
        ModelNotFound: with the command that downloads the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    )

    remedy = _download_command(model_id, models_dir)
    if not models_dir.is_dir():
        raise ModelNotFound(
            f"{model_id}: the models directory {models_dir} does not exist on this node. {remedy}"
        )
    try:
        return Path(snapshot_download(model_id, cache_dir=models_dir, local_files_only=True))
    except IncompleteSnapshotError as error:
        # Files of the repository are missing, as they should be: downloads with `--include`, such
        # as those of the Livepeer scripts, leave out what nobody loads.
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        raise ModelNotFound(f"{model_id} is not in {models_dir}. {remedy}") from None
    except HFValidationError as error:
        raise ModelNotFound(f"{model_id!r} is not a Hugging Face model id: {error}") from None


@contextmanager
def model_errors(model_id: str, directory: Path) -> Iterator[None]:
    """Turns whatever a library raises while a model loads into a `ModelError`.

    Args:
        model_id: the model that is being loaded.
        directory: where its files are, for the message.

    Raises:
        ModelBroken: with the cause, when the files do not load.
        ModelError: when the model does not fit on the device.
    """
    import torch

    try:
        yield
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{model_id} does not fit in this GPU's free memory: {one_line(error)}"
        ) from error
    except Exception as error:
        raise ModelBroken(
            f"{model_id} in {directory} does not load: {one_line(error)}. "
            "If files are missing or cut short, remove the directory and download it again."
        ) from error


def one_line(error: BaseException) -> str:
    """Returns an error's type and message for a log line or an answer, cut to 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def choose_device() -> "torch.device":
    """Returns the GPU that Ray gave this process, or the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(pipeline_class: str, device: "torch.device") -> "torch.dtype":
    """Returns the type to compute in.

    Args:
        pipeline_class: `_class_name` of the model's model_index.json.
        device: CPUs compute in float32, as few of them are faster in 16 bits.
    """
    import torch

    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if pipeline_class.startswith(BFLOAT16_FAMILIES) else torch.float16


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


def load_pipeline(factory: Any, snapshot: Path) -> Any:
    """Loads a diffusers pipeline onto this process's device.

    A bundled safety checker is left out: it would black images out, where the runner API only
    flags them (`deployments.safety`).

    Args:
        factory: a diffusers class with `from_pretrained`, `AutoPipelineForText2Image` say.
        snapshot: the model's files, from `find_snapshot`.
    """
    device = choose_device()
    index = json.loads((snapshot / "model_index.json").read_text())
    dtype = choose_dtype(index["_class_name"], device)
    variant = choose_variant(snapshot, device)
    options: dict[str, Any] = {}
    if "safety_checker" in index:
        options = {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
    logger.info("loading %s on %s as %s, variant %s", index["_class_name"], device, dtype, variant)
    pipe = factory.from_pretrained(
        snapshot, dtype=dtype, variant=variant, local_files_only=True, **options
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quiet_libraries() -> None:
    """Stops progress bars and advice of diffusers and transformers in this process.

    Their errors still show. Their advice concerns code we do not let operators change, and
    some of it repeats the prompts of customers.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _download_command(model_id: str, models_dir: Path) -> str:
    return f"Download it there: hf download {model_id} --cache-dir {models_dir}"
