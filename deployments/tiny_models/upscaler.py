"""A tiny model in the shape of stabilityai/stable-diffusion-x4-upscaler."""

from pathlib import Path

from deployments.tiny_models.stable_diffusion import (
    clip_text_encoder,
    clip_tokenizer,
    unet,
    vae,
)


def save_upscaler(directory: Path) -> None:
    """Saves a Stable Diffusion whose UNet reads the small image beside the noise."""
    from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline

    tokenizer = clip_tokenizer()
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    StableDiffusionUpscalePipeline(
        vae=vae(levels=3, scaling_factor=0.08333),
        text_encoder=clip_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(**betas),
        scheduler=DDIMScheduler(
            **betas,
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type="v_prediction",
            steps_offset=1,
        ),
        max_noise_level=350,
    ).save_pretrained(directory)
