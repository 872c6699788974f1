"""Finding models, what to load them with, and what an operator is told when it fails."""

import shutil
from pathlib import Path

import pytest
import torch

from deployments.errors import ModelBroken, ModelError, ModelNotFound
from deployments.loading import (
    choose_device,
    choose_dtype,
    find_file,
    find_snapshot,
    model_errors,
)
from deployments.text_to_image import TextToImageReplica
from tests.deployments.conftest import TINY_SD, args

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def own_copy(tiny_models_dir: Path, tmp_path: Path) -> Path:
    """A models directory that a test may break."""
    return shutil.copytree(tiny_models_dir, tmp_path / "models", symlinks=True)


def test_finds_the_commit_that_main_points_at(tiny_models_dir: Path) -> None:
    snapshot = find_snapshot(TINY_SD, tiny_models_dir)
    commit = (snapshot.parent.parent / "refs" / "main").read_text()
    assert snapshot.name == commit
    assert (snapshot / "model_index.json").is_file()


def test_a_missing_directory_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as error:
        find_snapshot("a/b", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(error.value)
    assert f"hf download a/b --cache-dir {tmp_path / 'nowhere'}" in str(error.value)


def test_a_missing_model_is_named_with_the_remedy(tiny_models_dir: Path) -> None:
    with pytest.raises(ModelNotFound) as error:
        TextToImageReplica(args=args(tiny_models_dir, "no/such-model"))
    assert f"no/such-model is not in {tiny_models_dir}" in str(error.value)
    assert f"hf download no/such-model --cache-dir {tiny_models_dir}" in str(error.value)


def test_a_missing_file_is_named_with_the_remedy(tiny_models_dir: Path, tmp_path: Path) -> None:
    assert find_file(TINY_SD, "model_index.json", tiny_models_dir).is_file()
    command = f"hf download {TINY_SD} unet.safetensors --cache-dir"
    for directory in (tiny_models_dir, tmp_path):
        with pytest.raises(ModelNotFound, match=f"unet.safetensors of {TINY_SD} is .*{command}"):
            find_file(TINY_SD, "unet.safetensors", directory)


@pytest.mark.parametrize("model_id", ["../../etc", "a/b/c", ""])
def test_what_is_no_model_id_is_named(tiny_models_dir: Path, model_id: str) -> None:
    with pytest.raises(ModelNotFound, match="not a Hugging Face model id"):
        find_snapshot(model_id, tiny_models_dir)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", b"{ not json"),
        ("model_index.json", b"{}"),
        ("model_index.json", None),
        ("unet/config.json", b"[]"),
        ("unet/diffusion_pytorch_model.safetensors", b"\x00" * 100),
        ("unet/diffusion_pytorch_model.safetensors", "truncated"),
        ("vae/diffusion_pytorch_model.safetensors", None),
        ("tokenizer/tokenizer.json", b"{"),
    ],
)
def test_a_broken_model_is_named(own_copy: Path, file: str, content: bytes | str | None) -> None:
    snapshot = find_snapshot(TINY_SD, own_copy)
    broken = snapshot / file
    whole = broken.read_bytes()
    broken.unlink()  # a link; the blob stays as it is
    if content is not None:
        broken.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(ModelBroken) as error:
        TextToImageReplica(args=args(own_copy))
    assert str(error.value).startswith(f"{TINY_SD} in {snapshot} does not load: ")
    assert "\n" not in str(error.value)


def test_too_large_a_model_is_not_called_broken(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match="a/b does not fit") as error,
        model_errors("a/b", tmp_path),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    assert not isinstance(error.value, ModelBroken)


def test_the_device_is_the_cpu_where_there_is_no_gpu() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("pipeline_class", "device", "dtype"),
    [
        ("StableDiffusionPipeline", CUDA, torch.float16),
        ("StableDiffusionXLPipeline", CUDA, torch.float16),
        ("StableDiffusion3Pipeline", CUDA, torch.bfloat16),
        ("FluxPipeline", CUDA, torch.bfloat16),
        ("FluxPipeline", CPU, torch.float32),
        ("StableDiffusionPipeline", CPU, torch.float32),
    ],
)
def test_the_type_to_compute_in(
    pipeline_class: str, device: torch.device, dtype: torch.dtype
) -> None:
    assert choose_dtype(pipeline_class, device) == dtype
