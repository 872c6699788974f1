"""A tiny model in the shape of timbrooks/instruct-pix2pix."""

from pathlib import Path

from deployments.tiny_models.stable_diffusion import (
    clip_text_encoder,
    clip_tokenizer,
    unet,
    vae,
)


def save_instruct_pix2pix(directory: Path) -> None:
    """Saves a Stable Diffusion whose UNet reads the input's latents beside the noise."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

    tokenizer = clip_tokenizer()
    StableDiffusionInstructPix2PixPipeline(
        vae=vae(),
        text_encoder=clip_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet(in_channels=8),
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)
