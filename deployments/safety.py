"""The safety checker of the runner API: it flags images and never changes them."""

import logging
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deployments.errors import ModelNotFound
from deployments.loading import choose_device, choose_dtype, find_snapshot, model_errors

logger = logging.getLogger("ray.serve")

CHECKER_ID = "CompVis/stable-diffusion-safety-checker"
"""The model that the reference asks (ai-runner, runner/src/runner/pipelines/utils/utils.py)."""


class SafetyChecker:
    """Tells which images may be offensive.

    Args:
        checker: diffusers' `StableDiffusionSafetyChecker`, on its device.
        processor: the CLIP image processor that prepares its input.
    """

    def __init__(self, *, checker: Any, processor: Any) -> None:
        self._checker = checker
        self._processor = processor

    @classmethod
    def load(cls, models_dir: Path) -> Self | None:
        """Loads the checker, or warns and returns None when its files are not there.

        Raises:
            ModelBroken: its files are there and do not load.
        """
        try:
            snapshot = find_snapshot(CHECKER_ID, models_dir)
        except ModelNotFound as error:
            logger.warning("No safety checker: every image is reported as safe. %s", error)
            return None
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        device = choose_device()
        with model_errors(CHECKER_ID, snapshot):
            checker = StableDiffusionSafetyChecker.from_pretrained(
                snapshot, dtype=choose_dtype("", device)
            )
            return cls(
                checker=checker.to(device).eval(),
                processor=CLIPImageProcessor.from_pretrained(snapshot),
            )

    def flag(self, images: NDArray[np.uint8]) -> list[bool]:
        """Returns for each of N x H x W x 3 images whether it may be offensive."""
        clip_input = self._processor(list(images), return_tensors="pt").pixel_values
        # The checker blacks out the images it is given: it gets stand-ins.
        stand_ins = np.zeros((len(images), 1))
        _, flags = self._checker(
            clip_input=clip_input.to(self._checker.device, self._checker.dtype), images=stand_ins
        )
        return [bool(flag) for flag in flags]
