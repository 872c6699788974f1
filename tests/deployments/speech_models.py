"""Tiny models that only tests speak with: SpeechT5 with what it needs, and Bark."""

import io
import json
import string
import zipfile
from pathlib import Path

import numpy as np

from deployments.parler_tts import import_parler_tts

SPEAKER_SIZE = 16


def save_speecht5(directory: Path) -> None:
    """Saves the shape of SpeechT5, with a real SentencePiece vocabulary of letters."""
    import sentencepiece
    from transformers import SpeechT5Config, SpeechT5ForTextToSpeech, SpeechT5Tokenizer

    vocabulary = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{string.ascii_lowercase} .,'", "a"] * 8),
        model_writer=vocabulary,
        model_type="char",
        vocab_size=40,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    file = directory / "spm_char.model"
    file.write_bytes(vocabulary.getvalue())
    tokenizer = SpeechT5Tokenizer(str(file))
    config = SpeechT5Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        encoder_layers=1,
        encoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        speech_decoder_prenet_units=32,
        speech_decoder_postnet_units=32,
        speaker_embedding_dim=SPEAKER_SIZE,
        speech_decoder_postnet_layers=2,
        initializer_range=0.3,  # who speaks is to be heard
    )
    model = SpeechT5ForTextToSpeech(config).eval()
    # It speaks until it may not.
    model.speech_decoder_postnet.prob_out.bias.data.fill_(-9)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def save_vocoder(directory: Path) -> None:
    """Saves the shape of SpeechT5's vocoder."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        upsample_initial_channel=32,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        initializer_range=0.3,  # loud enough for 16 bits
    )
    SpeechT5HifiGan(config).eval().save_pretrained(directory)


def save_voices(directory: Path, *, voice: int = 0, size: int = SPEAKER_SIZE) -> None:
    """Saves an archive of x-vectors as the published data set has it, with one in it."""
    vector = io.BytesIO()
    np.save(vector, np.random.default_rng(voice).normal(size=size).astype(np.float32))
    with zipfile.ZipFile(directory / "spkrec-xvect.zip", "w") as archive:
        name = "spkrec-xvect/cmu_us_slt_arctic-wav-arctic_a0508.npy"
        archive.writestr(name, vector.getvalue())


def save_bark(directory: Path) -> None:
    """Saves the shape of Bark: three language models and EnCodec. It says half a second."""
    from transformers import BarkConfig, BarkModel, BertTokenizer, EncodecConfig

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    words += [f"##{letter}" for letter in string.ascii_lowercase]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    small = {"num_layers": 1, "num_heads": 2, "hidden_size": 8}
    config = BarkConfig(
        semantic_config={**small, "input_vocab_size": 129_600, "output_vocab_size": 10_048},
        coarse_acoustics_config={
            **small,
            "input_vocab_size": 12_096,
            "output_vocab_size": 12_096,
        },
        fine_acoustics_config={**small, "input_vocab_size": 1056, "output_vocab_size": 1056},
        codec_config=EncodecConfig(
            target_bandwidths=[6.0], num_filters=2, hidden_size=8, num_lstm_layers=1
        ).to_dict(),
    )
    BarkModel(config).eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # Bark's own numbers are the defaults. transformers 5.23 reads this file and cannot write it.
    parts = {"semantic_config": {"max_new_tokens": 30, "min_eos_p": None}}
    parts |= {"coarse_acoustics_config": {}, "fine_acoustics_config": {}}
    generation = {"model_type": "bark", "sample_rate": 24_000, "codebook_size": 1024, **parts}
    (directory / "generation_config.json").write_text(json.dumps(generation))


def save_parler_tts(directory: Path) -> None:
    """Saves the shape of Parler-TTS, to be called in its environment.

    Its audio codec has one size only, 300 MB. It speaks for half a second.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config

    parler_tts = import_parler_tts("tiny")
    words = ["<pad>", "</s>", "<unk>", " ", *string.ascii_letters, *".,'"]
    letters = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = Split("", "isolated")
    letters.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    config = parler_tts.ParlerTTSConfig.from_sub_models_config(
        T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
        parler_tts.DACConfig(),
        parler_tts.ParlerTTSDecoderConfig(
            vocab_size=1088,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=32,
            num_codebooks=9,
            pad_token_id=1024,
            bos_token_id=1025,
            eos_token_id=1024,
            initializer_factor=1.0,  # what it is told is to be heard
        ),
        vocab_size=len(words),
    )
    model = parler_tts.ParlerTTSForConditionalGeneration(config).eval()
    generation = model.generation_config
    generation.decoder_start_token_id = generation.bos_token_id = 1025
    generation.pad_token_id = generation.eos_token_id = 1024
    generation.do_sample = True
    generation.max_length = 50
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(directory)
