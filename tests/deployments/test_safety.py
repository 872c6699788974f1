"""The safety checker flags images and never changes them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from deployments.errors import ModelBroken
from deployments.safety import CHECKER_ID, SafetyChecker
from deployments.text_to_image import TextToImageReplica
from deployments.tiny_models.repository import write_repository
from tests.deployments.conftest import args, pixels, request

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)


def write_checker(models_dir: Path, *, threshold: float) -> Path:
    """Writes a tiny checker that flags what is nearer to a concept than the threshold.

    It is not among the tiny models on purpose: it bears the real one's name, and in an
    operator's directory it would silently replace it.
    """

    def save(directory: Path) -> None:
        vision = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "intermediate_size": 37,
            "patch_size": 8,
        }
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=32))
        with torch.no_grad():
            checker.concept_embeds.normal_()
            checker.special_care_embeds.normal_()
            checker.concept_embeds_weights.fill_(threshold)
            checker.special_care_embeds_weights.fill_(1.1)
        checker.save_pretrained(directory)
        CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(directory)

    return write_repository(models_dir, CHECKER_ID, save)


@pytest.mark.parametrize(("threshold", "flag"), [(-1.1, True), (1.1, False)])
def test_the_checkers_word_is_passed_on(tmp_path: Path, threshold: float, flag: bool) -> None:
    write_checker(tmp_path, threshold=threshold)
    checker = SafetyChecker.load(tmp_path)
    assert checker is not None
    assert checker.flag(IMAGES) == [flag] * 3


def test_without_files_there_is_a_warning_with_the_remedy(
    tmp_path: Path, serve_log: pytest.LogCaptureFixture
) -> None:
    assert SafetyChecker.load(tmp_path) is None
    assert f"hf download {CHECKER_ID} --cache-dir {tmp_path}" in serve_log.text


def test_broken_files_are_not_taken_for_missing_ones(tmp_path: Path) -> None:
    snapshot = write_checker(tmp_path, threshold=1.1)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelBroken, match=CHECKER_ID):
        SafetyChecker.load(tmp_path)


async def test_a_flagged_image_is_kept_and_checked_only_if_asked(
    tiny_models_dir: Path, tmp_path: Path
) -> None:
    models_dir = shutil.copytree(tiny_models_dir, tmp_path / "models", symlinks=True)
    write_checker(models_dir, threshold=-1.1)
    replica = TextToImageReplica(args=args(models_dir))
    checked = (await replica.run(request(num_images_per_prompt=2))).result
    unchecked = (await replica.run(request(num_images_per_prompt=2, safety_check=False))).result
    assert [image.nsfw for image in checked.images] == [True, True]
    assert [image.nsfw for image in unchecked.images] == [False, False]
    np.testing.assert_array_equal(pixels(checked), pixels(unchecked))
    assert pixels(checked)[0].max() > 0
    replica.close()
