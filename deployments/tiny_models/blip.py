"""A tiny captioner in the shape of BLIP."""

import string
from pathlib import Path
from typing import Any


def _bert_tokenizer() -> Any:
    """Returns a lower-case BERT tokenizer of single characters, with BLIP's own marks."""
    from transformers import BertTokenizer

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*marks, *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        do_lower_case=True,
        model_max_length=512,
        additional_special_tokens=["[DEC]", "[ENC]"],
    )


def save_blip(directory: Path) -> None:
    """Saves the shape of BLIP's captioning model in about 0.5 MB."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = _bert_tokenizer()
    size = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "projection_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        # Large enough that the picture shows in the text: with the usual 0.02 it does not.
        "initializer_range": 0.5,
    }
    config = BlipConfig(
        text_config={
            **size,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 32,
            "max_position_embeddings": 512,
            "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**size, "image_size": 64, "patch_size": 16},
        projection_dim=32,
        image_text_hidden_size=32,
    )
    BlipForConditionalGeneration(config).eval().save_pretrained(directory)
    images = BlipImageProcessorPil(size={"height": 64, "width": 64})
    BlipProcessor(images, tokenizer).save_pretrained(directory)
