"""Tiny models that listen and speak: Whisper and VITS."""

import json
from pathlib import Path
from typing import Any

TIMESTAMPS = 1501
"""Whisper's: 0.00 to 30.00 s by 0.02."""


def _whisper_tokenizer() -> Any:
    """Returns single bytes, then Whisper's special tokens in its order, then the timestamps."""
    from transformers import AddedToken, WhisperTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    letters = [letter for _, letter in sorted(bytes_to_unicode().items())]
    tokens = [*letters, "<|endoftext|>"]
    tokenizer = WhisperTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        pad_token="<|endoftext|>",  # noqa: S106 - a word of the vocabulary
        model_max_length=448,
    )
    special = [
        "<|startoftranscript|>",
        *(f"<|{language}|>" for language in LANGUAGES),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(
        [
            AddedToken(f"<|{number * 0.02:.2f}|>", special=False, normalized=False)
            for number in range(TIMESTAMPS)
        ]
    )
    return tokenizer


def save_whisper(directory: Path) -> None:
    """Saves the shape of Whisper in about 0.5 MB; it writes letters that mean nothing."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    tokenizer = _whisper_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    end = token("<|endoftext|>")
    ends = {
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": token("<|startoftranscript|>"),
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=64,
        # Ten times the usual: what is heard decides what is written.
        init_std=0.2,
        # Tied, each letter would call for itself.
        tie_word_embeddings=False,
        **ends,
    )
    model = WhisperForConditionalGeneration(config).eval()
    # Letters speak louder than the 1501 timestamps: a few of each come out.
    letters = model.proj_out.weight.data[ord(" ") : ord("~") + 1]
    letters *= 2
    unspoken = [
        "<|startoftranscript|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
    ]
    unprintable = [byte for byte in range(256) if not ord(" ") <= byte <= ord("~")]
    model.generation_config = GenerationConfig(
        **ends,
        is_multilingual=True,
        lang_to_id={f"<|{language}|>": token(f"<|{language}|>") for language in LANGUAGES},
        task_to_id={task: token(f"<|{task}|>") for task in ("translate", "transcribe")},
        no_timestamps_token_id=token("<|notimestamps|>"),
        prev_sot_token_id=token("<|startofprev|>"),
        max_initial_timestamp_index=50,
        return_timestamps=False,
        max_length=config.max_target_positions,
        suppress_tokens=[*map(token, unspoken), *unprintable],
        begin_suppress_tokens=[ord(" "), end],
        alignment_heads=[[0, 0], [0, 1], [1, 0], [1, 1]],
    )
    model.save_pretrained(directory)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(directory)


def save_vits(directory: Path) -> None:
    """Saves the shape of VITS in about 0.5 MB; it speaks noise, of a length that fits the text."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    letters = ["<pad>", *" '-abcdefghijklmnopqrstuvwxyz0123456789.,!?", "<unk>"]
    vocabulary = directory / "vocab.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    tokenizer = VitsTokenizer(
        str(vocabulary), phonemize=False, normalize=True, add_blank=True, language="eng"
    )
    config = VitsConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=32,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=32,
        upsample_rates=[8, 8, 2, 2],
        upsample_kernel_sizes=[16, 16, 4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        duration_predictor_num_flows=2,
        duration_predictor_flow_bins=4,
        depth_separable_num_layers=2,
        depth_separable_channels=2,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        wavenet_dilation_rate=1,
        wavenet_kernel_size=3,
        sampling_rate=16_000,
    )
    VitsModel(config).eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
