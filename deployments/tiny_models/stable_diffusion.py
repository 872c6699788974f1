"""Tiny diffusion models in the shape of Stable Diffusion."""

from pathlib import Path
from typing import Any


def clip_tokenizer() -> Any:
    """Returns a CLIP tokenizer of single bytes: 256, the same at a word's end, start and end."""
    from transformers import CLIPTokenizer

    # CLIP's printable stand-ins for bytes: latin-1's own, then code points from 256 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = range(256, 256 + 256 - len(printable))
    letters = [chr(code) for code in (*printable, *others)]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip_text_encoder(tokenizer: Any, **config: Any) -> Any:
    """Returns CLIP's text encoder, for this tokenizer.

    Args:
        tokenizer: from `clip_tokenizer`.
        config: what is to differ from the tiny one.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        projection_dim=32,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="gelu",
        **{**shape, **config},
    )
    return CLIPTextModel(text_config).eval()


def vae(levels: int = 4, latent_channels: int = 4, **config: Any) -> Any:
    """Returns Stable Diffusion's autoencoder.

    Args:
        levels: sides are halved once less than that; four levels shrink by 8.
        latent_channels: how many numbers each latent is.
        config: what else is to differ from Stable Diffusion 1.5's.
    """
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=32,
        **config,
    ).eval()


def unet(cross_attention_dim: int = 32, **config: Any) -> Any:
    """Returns Stable Diffusion's UNet with attention at the two middle resolutions only.

    At the full one, attention over 4096 latents of a 512x512 image is 90 % of a CPU's work.

    Args:
        cross_attention_dim: the text encoders' width.
        config: what is to differ from Stable Diffusion 1.5's.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        sample_size=64,
        norm_num_groups=4,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        **config,
    ).eval()


def save_stable_diffusion(directory: Path, **text_encoder: Any) -> None:
    """Saves the shape of Stable Diffusion 1.5 in about 1 MB.

    Args:
        directory: for its files.
        text_encoder: what is to differ from the tiny one, for models of other sizes.
    """
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer = clip_tokenizer()
    StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text_encoder(tokenizer, **text_encoder),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=text_encoder.get("hidden_size", 32)),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)
