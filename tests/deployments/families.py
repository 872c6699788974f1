"""Tiny models in the shape of the larger families, with random weights.

Not among `deployments.tiny_models`, as no demo runs them, and SDXL-Lightning has to be found
under the ids of the real repositories.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deployments.special_models import LIGHTNING, SDXL_BASE
from deployments.tiny_models.repository import write_repository
from deployments.tiny_models.stable_diffusion import clip_text_encoder, clip_tokenizer, unet, vae

WIDTH = 32
"""Of the CLIP text encoders."""


def _projecting(tokenizer: Any) -> Any:
    """Returns CLIP's text encoder with a projection, as the larger families have."""
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(clip_text_encoder(tokenizer).config).eval()


def _t5(width: int) -> tuple[Any, Any]:
    """Returns T5's encoder of that width, and a tokenizer of single characters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = ["\u2581", *(chr(code) for code in range(ord("!"), ord("~") + 1))]
    vocabulary = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(letter, -1.0) for letter in letters]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=64)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=4
    )
    return T5EncoderModel(config).eval(), tokenizer


def _deep_vae() -> Any:
    """Returns the autoencoder of 16 channels that transformers draw with."""
    return vae(
        latent_channels=16, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False
    )


def xl_unet() -> Any:
    """Returns SDXL's UNet, which also reads the image's size and the second encoder's summary."""
    return unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )


def save_xl(directory: Path) -> None:
    """Saves the shape of SDXL."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = clip_tokenizer()
    StableDiffusionXLPipeline(
        vae=vae(force_upcast=True),
        text_encoder=clip_text_encoder(tokenizer),
        text_encoder_2=_projecting(tokenizer),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=xl_unet(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    ).save_pretrained(directory)


def save_sd3(directory: Path) -> None:
    """Saves the shape of Stable Diffusion 3, with its three text encoders."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokenizer = clip_tokenizer()
    # T5's width is that of the two others together.
    t5, t5_tokenizer = _t5(2 * WIDTH)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=32,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * WIDTH,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_deep_vae(),
        text_encoder=_projecting(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_projecting(tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
    ).save_pretrained(directory)


def save_flux(directory: Path) -> None:
    """Saves the shape of Flux."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = clip_tokenizer()
    t5, t5_tokenizer = _t5(WIDTH)
    FluxPipeline(
        transformer=FluxTransformer2DModel(
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_deep_vae(),
        text_encoder=clip_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
    ).save_pretrained(directory)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "test/xl": save_xl,
    "test/sd3": save_sd3,
    "test/flux": save_flux,
}


def write_lightning(models_dir: Path) -> None:
    """Writes an SDXL and UNets for 2, 4 and 8 steps, under the ids of the real ones."""

    def save(directory: Path) -> None:
        for steps in (2, 4, 8):
            weights = {name: value.half() for name, value in xl_unet().state_dict().items()}
            save_file(weights, directory / f"sdxl_lightning_{steps}step_unet.safetensors")

    write_repository(models_dir, SDXL_BASE, save_xl)
    write_repository(models_dir, LIGHTNING, save)


def write_external_vae(models_dir: Path, model_id: str, vae_id: str) -> None:
    """Writes a Stable Diffusion without its VAE, and the VAE as a model of its own."""
    from deployments.tiny_models.stable_diffusion import save_stable_diffusion

    def save(directory: Path) -> None:
        save_stable_diffusion(directory)
        for file in (directory / "vae").iterdir():
            file.unlink()

    def save_vae(directory: Path) -> None:
        torch.manual_seed(1)
        vae().save_pretrained(directory)

    write_repository(models_dir, model_id, save)
    write_repository(models_dir, vae_id, save_vae)
