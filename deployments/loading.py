"""From a model id to its files, without a network, and what to load them with.

Models lie in the Hugging Face cache layout below one directory, as `hf download --cache-dir`
and the Livepeer download scripts leave them:

    models--org--name/refs/main                 a commit
    models--org--name/snapshots/<commit>/...    links into blobs/
    models--org--name/blobs/<hash>

Whatever goes wrong is a `ModelError` that names the model, the directory and the remedy.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.errors import ModelBroken, ModelError, ModelNotFound

if TYPE_CHECKING:
    import torch

BFLOAT16_FAMILIES = ("Flux", "StableDiffusion3")
"""Pipeline classes whose transformers overflow float16; their authors publish bfloat16."""


def find_snapshot(model_id: str, models_dir: Path, *, repo_type: str = "model") -> Path:
    """Returns the directory that holds the model's files.

    Args:
        model_id: the Hugging Face id.
        models_dir: a directory in the Hugging Face cache layout.
        repo_type: `dataset` for what some models need beside their weights.

    Raises:
        ModelNotFound: with the command that downloads the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    remedy = _download_command(model_id, models_dir, repo_type)
    if not models_dir.is_dir():
        raise ModelNotFound(
            f"{model_id}: the models directory {models_dir} does not exist on this node. {remedy}"
        )
    try:
        return Path(
            snapshot_download(
                model_id, repo_type=repo_type, cache_dir=models_dir, local_files_only=True
            )
        )
    except LocalEntryNotFoundError as error:
        # Or only files of the repository are missing, as they should be: downloads with
        # `--include`, such as those of the Livepeer scripts, leave out what nobody loads.
        # Parler-TTS's environment has a library from before it told one from the other.
        if incomplete := getattr(error, "snapshot_path", ""):
            return Path(incomplete)
        raise ModelNotFound(f"{model_id} is not in {models_dir}. {remedy}") from None
    except HFValidationError as error:
        raise ModelNotFound(f"{model_id!r} is not a Hugging Face model id: {error}") from None


def find_file(model_id: str, file: str, models_dir: Path) -> Path:
    """Returns one file of a repository of which nothing else is needed.

    Raises:
        ModelNotFound: with the command that downloads it.
    """
    with suppress(ModelNotFound):
        path = find_snapshot(model_id, models_dir) / file
        if path.is_file():
            return path
    raise ModelNotFound(
        f"{file} of {model_id} is not in {models_dir}. "
        f"Download it there: hf download {model_id} {file} --cache-dir {models_dir}"
    )


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


def quiet_libraries() -> None:
    """Stops progress bars and advice of diffusers and transformers in this process.

    Their errors still show. Their advice concerns code we do not let operators change, and
    some of it repeats the prompts of customers.
    """
    import transformers.utils.logging

    libraries = [transformers.utils.logging]
    # Parler-TTS's environment has an older huggingface_hub, with which diffusers does not import.
    with suppress(ImportError):
        import diffusers.utils.logging

        libraries.append(diffusers.utils.logging)
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()


def _download_command(model_id: str, models_dir: Path, repo_type: str) -> str:
    kind = "" if repo_type == "model" else f" --repo-type {repo_type}"
    return f"Download it there: hf download {model_id}{kind} --cache-dir {models_dir}"
