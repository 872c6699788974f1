"""Pipelines from files: which are taken, and models whose files lie in several repositories."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
from diffusers.pipelines import auto_pipeline
from safetensors.torch import load_file

from deployments import image_to_image, text_to_image
from deployments.assembly import (
    ModelFiles,
    choose_variant,
    find_files,
    load_pipeline,
    pipeline_class,
)
from deployments.errors import ModelBroken, ModelNotFound
from deployments.special_models import LIGHTNING, SDXL_BASE, special
from deployments.tiny_models.repository import write_repository
from tests.deployments.conftest import TINY_SD
from tests.deployments.families import write_external_vae

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("files", "on_gpu", "on_cpu"),
    [
        (["unet/model.safetensors"], None, None),
        (["unet/model.fp16.safetensors"], "fp16", "fp16"),
        (["unet/model.safetensors", "unet/model.fp16.safetensors"], "fp16", None),
        (["unet/model.bin", "unet/model.fp16.bin"], "fp16", None),
        (["t/model.fp16-00001-of-00002.safetensors", "vae/model.safetensors"], "fp16", "fp16"),
        (["whole_model.fp16.safetensors", "unet/model.safetensors"], None, None),
        (["unet/config.json"], None, None),
    ],
)
def test_the_variant_follows_the_files(
    tmp_path: Path, files: list[str], on_gpu: str | None, on_cpu: str | None
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert choose_variant(tmp_path, CUDA) == on_gpu
    assert choose_variant(tmp_path, CPU) == on_cpu


def test_classes_are_those_that_diffusers_would_choose() -> None:
    text, image = (
        auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    )
    for named in text_to_image.CLASSES:
        assert auto_pipeline._get_task_class(text, named).__name__ == named
    for named, chosen in image_to_image.CLASSES.items():
        if named != image_to_image.INSTRUCT_PIX2PIX:
            assert auto_pipeline._get_task_class(image, named).__name__ == chosen


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("FluxPipeline", "FluxImg2ImgPipeline"),
        (image_to_image.INSTRUCT_PIX2PIX, image_to_image.INSTRUCT_PIX2PIX),
        ("KandinskyPipeline", "AutoPipelineForImage2Image"),
    ],
)
def test_the_class_follows_what_the_model_names(tmp_path: Path, named: str, expected: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": named}))
    found = pipeline_class(tmp_path, image_to_image.CLASSES, otherwise="AutoPipelineForImage2Image")
    assert found is getattr(diffusers, expected)


def test_only_what_is_loaded_is_read_ahead(lightning_dir: Path, tiny_models_dir: Path) -> None:
    assert {file.parent.name for file in find_files(TINY_SD, tiny_models_dir).weights()} == {
        "unet",
        "vae",
        "text_encoder",
    }
    files = find_files(f"{LIGHTNING}-4step", lightning_dir)
    weights = files.weights()
    assert files.unet in weights
    assert not [file for file in weights if file.parent.name == "unet"]
    assert {"vae", "text_encoder"} <= {file.parent.name for file in weights}


def test_a_model_with_16_bit_files_only_runs_on_a_cpu(tiny_models_dir: Path) -> None:
    whole = load_pipeline(AutoPipelineForText2Image, find_files(TINY_SD, tiny_models_dir))

    def save(directory: Path) -> None:
        whole.to(dtype=torch.float16).save_pretrained(directory, variant="fp16")

    snapshot = write_repository(tiny_models_dir, "test/fp16-only", save)
    assert not list(snapshot.glob("*/diffusion_pytorch_model.safetensors"))
    pipe = load_pipeline(AutoPipelineForText2Image, ModelFiles(pipeline=snapshot))
    for component in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {weight.dtype for weight in component.parameters()} == {torch.float32}


def test_a_bundled_safety_checker_is_left_out(tiny_models_dir: Path) -> None:
    whole = load_pipeline(AutoPipelineForText2Image, find_files(TINY_SD, tiny_models_dir))

    def save(directory: Path) -> None:
        whole.save_pretrained(directory)
        index = json.loads((directory / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        index["requires_safety_checker"] = True
        (directory / "model_index.json").write_text(json.dumps(index))

    snapshot = write_repository(tiny_models_dir, "test/with-checker", save)
    pipe = load_pipeline(AutoPipelineForText2Image, ModelFiles(pipeline=snapshot))
    assert isinstance(pipe, StableDiffusionPipeline)
    assert pipe.safety_checker is None


@pytest.mark.parametrize(
    ("model_id", "steps"),
    [
        (LIGHTNING, 8),
        (f"{LIGHTNING}-2step", 2),
        (f"{LIGHTNING}-4step", 4),
        (f"{LIGHTNING}-8step", 8),
        (f"{LIGHTNING}_4step_unet", 4),
    ],
)
def test_lightnings_unet_takes_the_place_of_sdxls(
    lightning_dir: Path, model_id: str, steps: int
) -> None:
    files = find_files(model_id, lightning_dir)
    assert files.pipeline == find_files(SDXL_BASE, lightning_dir).pipeline
    assert files.unet is not None
    assert files.unet.name == f"sdxl_lightning_{steps}step_unet.safetensors"
    assert (special(model_id).steps, special(model_id).guided) == (steps, False)
    pipe = load_pipeline(AutoPipelineForText2Image, files)
    weights = load_file(files.unet)
    loaded = pipe.unet.state_dict()
    assert loaded.keys() == weights.keys()
    for name, weight in weights.items():
        # The file holds 16 bits and a CPU computes in 32.
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight.float())


@pytest.fixture
def own_lightning(lightning_dir: Path, tmp_path: Path) -> Path:
    """A models directory that a test may break."""
    return shutil.copytree(lightning_dir, tmp_path / "models", symlinks=True)


@pytest.mark.parametrize("missing", [SDXL_BASE, LIGHTNING])
def test_a_repository_that_lightning_lacks_is_named(own_lightning: Path, missing: str) -> None:
    shutil.rmtree(own_lightning / f"models--{missing.replace('/', '--')}")
    file = "sdxl_lightning_4step_unet.safetensors" if missing == LIGHTNING else ""
    with pytest.raises(ModelNotFound) as error:
        find_files(f"{LIGHTNING}-4step", own_lightning)
    assert str(error.value) == (
        f"{LIGHTNING}-4step needs files of {SDXL_BASE}, {LIGHTNING}: "
        f"{file}{' of ' if file else ''}{missing} is not in {own_lightning}. Download it there: "
        f"hf download {missing} {file}{' ' if file else ''}--cache-dir {own_lightning}"
    )


def test_a_broken_unet_is_named(own_lightning: Path) -> None:
    files = find_files(LIGHTNING, own_lightning)
    assert files.unet is not None
    files.unet.unlink()
    files.unet.write_bytes(b"\x00" * 100)
    with pytest.raises(ModelBroken, match=r"^sdxl_lightning_8step_unet\.safetensors in .* load: "):
        load_pipeline(AutoPipelineForText2Image, files)


def test_an_external_vae_takes_the_place_of_the_models(tmp_path: Path) -> None:
    realistic, vae = "SG161222/Realistic_Vision_V6.0_B1_noVAE", "stabilityai/sd-vae-ft-ema"
    write_external_vae(tmp_path, realistic, vae)
    files = find_files(realistic, tmp_path)
    assert files.vae is not None
    pipe = load_pipeline(AutoPipelineForText2Image, files)
    weights = load_file(files.vae / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(pipe.vae.state_dict()[name], weights[name]) for name in weights)
    shutil.rmtree(tmp_path / "models--stabilityai--sd-vae-ft-ema")
    with pytest.raises(ModelNotFound, match=f"{realistic} needs .* hf download {vae} --cache-dir"):
        find_files(realistic, tmp_path)
