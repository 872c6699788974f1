"""text-to-speech on a real VITS, and a real SpeechT5, of random weights."""

import asyncio
import io
import string
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.audio_output import encode_wav
from deployments.errors import BadRequest, ModelBroken, ModelNotFound
from deployments.model_args import ModelArgs
from deployments.schemas.text_to_speech import (
    MAX_TEXT_CHARS,
    TextToSpeechRequest,
    TextToSpeechResult,
)
from deployments.text_to_speech import (
    MAX_PIECE_CHARS,
    SPEECHT5_VOCODER,
    Spoken,
    TextToSpeechReplica,
    pieces,
)
from deployments.tiny_models.repository import write_repository
from tests.deployments.conftest import PATIENCE_S


class ObservedReplica(TextToSpeechReplica):
    """The real replica, with a hand on its pieces."""

    def __init__(self, *, args: ModelArgs) -> None:
        self.asked = 0
        self.stepped = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        super().__init__(args=args)

    def infer(self, request: TextToSpeechRequest, raise_if_cancelled: Callable[[], None]) -> Spoken:
        """Infers, counting the pieces and holding them while `go_on` is not set."""
        self.asked = 0

        def observed() -> None:
            self.asked += 1
            self.stepped.set()
            assert self.go_on.wait(PATIENCE_S)
            raise_if_cancelled()

        return super().infer(request, observed)


def args(models_dir: Path, model_id: str = "livepeer-ray/tiny-vits") -> ModelArgs:
    return ModelArgs(pipeline="text-to-speech", model_id=model_id, models_dir=models_dir)


@pytest.fixture(scope="module")
def replica(tiny_models_dir: Path) -> Iterator[ObservedReplica]:
    replica = ObservedReplica(args=args(tiny_models_dir))
    yield replica
    replica.close()


async def speak(replica: TextToSpeechReplica, text: str, **more: Any) -> TextToSpeechResult:
    request = TextToSpeechRequest.parse({"text": text, **more})
    return (await replica.run(request)).result


def seconds(result: TextToSpeechResult) -> float:
    with wave.open(io.BytesIO(result.audio.data)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, 16_000)
        samples = np.frombuffer(wav.readframes(wav.getnframes()), dtype="<i2")
    assert samples.any()
    return len(samples) / 16_000


async def test_a_text_is_a_wav_file(replica: ObservedReplica) -> None:
    result = await speak(replica, "Hello, world.", description="A calm voice.")
    assert [file.media_type for file in result.files] == ["audio/wav"]
    assert result.document(["0badcafe.wav"]) == {"audio": {"url": "0badcafe.wav"}}
    assert seconds(result) > 0.1


async def test_a_long_text_is_spoken_in_pieces(replica: ObservedReplica) -> None:
    short = seconds(await speak(replica, "the cat sat."))
    assert replica.asked == 1
    text = "the cat sat. " * 30
    long = seconds(await speak(replica, text))
    assert replica.asked == len(list(pieces(text))) == 3
    assert long > 5 * short


async def test_a_cancelled_request_stops_at_its_next_piece(replica: ObservedReplica) -> None:
    replica.stepped.clear()
    replica.go_on.clear()
    running = asyncio.create_task(speak(replica, "the cat sat. " * 30))
    await asyncio.to_thread(replica.stepped.wait, PATIENCE_S)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    replica.go_on.set()
    await asyncio.wrap_future(replica._model_executor.submit(lambda: None))
    assert replica.asked == 1


async def test_characters_that_the_model_does_not_know(replica: ObservedReplica) -> None:
    with pytest.raises(BadRequest, match=r"^text: it has no character"):
        await speak(replica, "漢字")
    # A piece without a known character is left out of a text that has some.
    assert seconds(await speak(replica, "漢" * MAX_PIECE_CHARS + " hello")) > 0


@pytest.mark.parametrize("text", ["a", ".", "<pad>", "\x00a\x00", "1\n2", "é and 𝄞"])
async def test_odd_texts_are_spoken(replica: ObservedReplica, text: str) -> None:
    await speak(replica, text)


@pytest.mark.parametrize("text", ["", " \n\t ", None, 7, "a" * (MAX_TEXT_CHARS + 1)])
def test_no_text_or_too_much_is_refused(text: object) -> None:
    with pytest.raises(BadRequest, match=r"^text: "):
        TextToSpeechRequest.parse({"text": text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One.", ["One."]),
        ("One. Two. Three.", ["One. Two.", "Three."]),
        ("One, two three four", ["One,", "two three", "four"]),
        ("abcdefghijklmn", ["abcdefghij", "klmn"]),
        ("Pi: 3.14159.", ["Pi:", "3.14159."]),
        ("一二三。四五六七八九十一", ["一二三。", "四五六七八九十一"]),
    ],
)
def test_where_texts_are_cut(text: str, expected: list[str]) -> None:
    assert list(pieces(text, max_chars=10)) == expected


@given(st.text(max_size=300), st.integers(1, 40))
def test_pieces_lose_nothing_and_are_bounded(text: str, max_chars: int) -> None:
    cut = list(pieces(text, max_chars))
    assert all(piece and len(piece) <= max_chars for piece in cut)
    assert "".join("".join(cut).split()) == "".join(text.split())


def test_loud_and_broken_samples_stay_in_range() -> None:
    file = encode_wav(np.array([0, 1, -1, 9, -9, np.nan, np.inf], dtype=np.float32), 8_000)
    with wave.open(io.BytesIO(file.data)) as wav:
        samples = np.frombuffer(wav.readframes(7), dtype="<i2").tolist()
        assert wav.getframerate() == 8_000
    assert samples == [0, 32767, -32767, 32767, -32767, 0, 32767]


def test_parler_is_named_before_anyone_downloads_it(tmp_path: Path) -> None:
    with pytest.raises(ModelBroken, match=r"^parler-tts/mini: Parler-TTS is not served yet"):
        TextToSpeechReplica(args=args(tmp_path, "parler-tts/mini"))


def save_speecht5(directory: Path) -> None:
    """Its real tokenizer needs sentencepiece; this one knows lower-case letters."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast, SpeechT5Config, SpeechT5ForTextToSpeech

    vocabulary = dict(
        zip(["<s>", "<pad>", "</s>", "<unk>", *string.ascii_lowercase], range(30), strict=True)
    )
    letters = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = Split("", "isolated")
    config = SpeechT5Config(
        vocab_size=len(vocabulary),
        hidden_size=24,
        encoder_layers=1,
        encoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        speech_decoder_prenet_units=32,
        speech_decoder_postnet_units=32,
        speaker_embedding_dim=16,
        speech_decoder_postnet_layers=2,
    )
    SpeechT5ForTextToSpeech(config).eval().save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(directory)


def save_vocoder(directory: Path) -> None:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        upsample_initial_channel=32,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        initializer_range=0.3,  # loud enough for 16 bits
    )
    SpeechT5HifiGan(config).eval().save_pretrained(directory)


async def test_speecht5_speaks_through_its_vocoder(tmp_path: Path) -> None:
    write_repository(tmp_path, "test/speecht5", save_speecht5)
    with pytest.raises(ModelNotFound, match=f"hf download {SPEECHT5_VOCODER}"):
        TextToSpeechReplica(args=args(tmp_path, "test/speecht5"))
    write_repository(tmp_path, SPEECHT5_VOCODER, save_vocoder)
    replica = TextToSpeechReplica(args=args(tmp_path, "test/speecht5"))
    assert seconds(await speak(replica, "hello")) > 0
    replica.close()
