"""A tiny chat model in the shape of Qwen 3."""

from pathlib import Path
from typing import Any

CORPUS = (
    "What is the capital of France? The capital of France is Paris.",
    "A GPU renders images, video, speech and text for many people at once.",
    "You are a helpful assistant. Please answer the question of the user.",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTEXT_TOKENS = 2048


def _tokenizer() -> Any:
    """Returns a byte-level BPE tokenizer of 512 tokens at most: it reads any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - no password
        pad_token="<|endoftext|>",  # noqa: S106 - no password
        additional_special_tokens=["<|im_start|>"],
        model_max_length=CONTEXT_TOKENS,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_language_model(directory: Path, **config: Any) -> None:
    """Saves a chat model of two layers, under 1 MB, that babbles in printable ASCII.

    Args:
        directory: for its files.
        config: what is to differ from the tiny one, for models of other sizes.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _tokenizer()
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **{**shape, **config},
        )
    ).eval()
    # Random weights would say any byte; these tokens are never drawn.
    model.generation_config.suppress_tokens = [
        token
        for token in range(len(tokenizer))
        if token != tokenizer.eos_token_id
        and not (tokenizer.decode([token]).isascii() and tokenizer.decode([token]).isprintable())
    ] + [tokenizer.convert_tokens_to_ids("<|im_start|>"), tokenizer.pad_token_id]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
