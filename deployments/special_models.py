"""Models that their own repository does not describe completely, by id.

The ids and what they mean are ai-runner's (runner/src/runner/pipelines/text_to_image.py and
image_to_image.py). Everything else about a model is read from its files.
"""

import re
from dataclasses import dataclass

LIGHTNING = "ByteDance/SDXL-Lightning"
"""Holds UNets distilled to 2, 4 and 8 steps, `sdxl_lightning_4step_unet.safetensors` say, and
nothing else. The number of steps is appended to the id, as in ByteDance/SDXL-Lightning-4step."""

LIGHTNING_STEPS = 8
"""Where the id names none."""

SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
"""What SDXL-Lightning takes everything but its UNet from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """What sets a model apart; the defaults are those of every other model."""

    base: str = ""
    """The model whose files it is made from, if not its own."""
    unet: tuple[str, str] | None = None
    """Repository and name of the file that takes the place of the base's UNet."""
    vae: str = ""
    """The model that takes the place of its VAE."""
    guided: bool = True
    """False: it was distilled without guidance, which would spoil its images."""
    steps: int | None = None
    """The one number of steps that it was distilled to."""


_BY_ID = {
    "stabilityai/sd-turbo": Special(guided=False),
    "stabilityai/sdxl-turbo": Special(guided=False),
    "SG161222/Realistic_Vision_V6.0_B1_noVAE": Special(vae="stabilityai/sd-vae-ft-ema"),
}


_DISTILLED = re.compile(r"[-_](?:lightning|turbo)", re.IGNORECASE)
"""ai-runner's test (runner/src/runner/pipelines/utils/utils.py)."""


def is_distilled(model_id: str) -> bool:
    """Whether a model is made for so few steps that no step resembles the one before."""
    return _DISTILLED.search(model_id) is not None


def special(model_id: str) -> Special:
    """Returns what is special about a model."""
    if not model_id.startswith(LIGHTNING):
        return _BY_ID.get(model_id, Special())
    named = re.search("([248])step", model_id)
    steps = int(named[1]) if named else LIGHTNING_STEPS
    return Special(
        base=SDXL_BASE,
        unet=(LIGHTNING, f"sdxl_lightning_{steps}step_unet.safetensors"),
        guided=False,
        steps=steps,
    )
