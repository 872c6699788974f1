"""text-to-speech on a real VITS, SpeechT5 and Bark, of random weights."""

import io
import shutil
import wave
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deployments.audio_output import encode_wav
from deployments.errors import BadRequest, ModelBroken, ModelNotFound
from deployments.model_args import ModelArgs
from deployments.parler_tts import ParlerTTSReplica
from deployments.schemas.text_to_speech import (
    MAX_DESCRIPTION_CHARS,
    MAX_TEXT_CHARS,
    TextToSpeechRequest,
    TextToSpeechResult,
)
from deployments.speecht5 import VOCODER, VOICES
from deployments.text_to_speech import MAX_PIECE_CHARS, Spoken, TextToSpeechReplica, pieces
from deployments.tiny_models.repository import write_repository
from tests.deployments.inputs import Observed
from tests.deployments.speech_models import (
    SPEAKER_SIZE,
    save_bark,
    save_speecht5,
    save_vocoder,
    save_voices,
)


class ObservedReplica(Observed, TextToSpeechReplica):
    """The real replica, with a hand on its pieces."""

    def __init__(self, *, args: ModelArgs) -> None:
        self.said: list[str] = []
        super().__init__(args=args)

    def infer(self, request: TextToSpeechRequest, raise_if_cancelled: Callable[[], None]) -> Spoken:
        """Infers, and notes what it says."""
        self.said.clear()
        spoken: Spoken = super().infer(request, raise_if_cancelled)
        return spoken

    def say(
        self, piece: str, description: str, raise_if_cancelled: Callable[[], None]
    ) -> NDArray[np.float32] | None:
        """Says it and notes it."""
        self.said.append(piece)
        return super().say(piece, description, raise_if_cancelled)


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


def seconds(result: TextToSpeechResult, rate_hz: int = 16_000) -> float:
    with wave.open(io.BytesIO(result.audio.data)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, rate_hz)
        samples = np.frombuffer(wav.readframes(wav.getnframes()), dtype="<i2")
    assert samples.any()
    return len(samples) / rate_hz


async def test_a_text_is_a_wav_file(replica: ObservedReplica) -> None:
    result = await speak(replica, "Hello, world.", description="A calm voice.")
    assert [file.media_type for file in result.files] == ["audio/wav"]
    assert result.document(["0badcafe.wav"]) == {"audio": {"url": "0badcafe.wav"}}
    assert seconds(result) > 0.1


async def test_a_long_text_is_spoken_in_pieces(replica: ObservedReplica) -> None:
    short = seconds(await speak(replica, "the cat sat."))
    assert replica.said == ["the cat sat."]
    text = "the cat sat. " * 30
    long = seconds(await speak(replica, text))
    assert replica.said == list(pieces(text))
    assert len(replica.said) == 3
    assert long > 5 * short


async def test_a_cancelled_request_stops_at_its_next_piece(replica: ObservedReplica) -> None:
    request = TextToSpeechRequest(text="the cat sat. " * 30)
    assert await replica.looks_when_cancelled(request, at=1) == 1


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


def save_dataset(models_dir: Path, save: Callable[[Path], None]) -> None:
    """Writes SpeechT5's voices to where `hf download --repo-type dataset` leaves them."""
    folder = models_dir / f"datasets--{VOICES.replace('/', '--')}"
    shutil.rmtree(folder, ignore_errors=True)
    write_repository(models_dir, VOICES, save)
    (models_dir / f"models--{VOICES.replace('/', '--')}").rename(folder)


def test_parler_tts_outside_its_environment(tiny_models_dir: Path) -> None:
    with pytest.raises(ModelBroken, match=r"needs the runtime environment that `livepeer-ray"):
        ParlerTTSReplica(args=args(tiny_models_dir))


@pytest.mark.parametrize("length", [MAX_DESCRIPTION_CHARS, MAX_DESCRIPTION_CHARS + 1])
def test_descriptions_are_bounded(length: int) -> None:
    payload = {"text": "hello", "description": "a" * length}
    if length <= MAX_DESCRIPTION_CHARS:
        assert len(TextToSpeechRequest.parse(payload).description) == length
    else:
        with pytest.raises(BadRequest, match=r"^description: "):
            TextToSpeechRequest.parse(payload)


@pytest.fixture(scope="module")
def speecht5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models_dir = tmp_path_factory.mktemp("speecht5")
    write_repository(models_dir, "test/speecht5", save_speecht5)
    return models_dir


async def test_speecht5_speaks_with_its_voice_through_its_vocoder(speecht5_dir: Path) -> None:
    of_speecht5 = args(speecht5_dir, "test/speecht5")
    with pytest.raises(ModelNotFound, match=f"hf download {VOICES} --repo-type dataset "):
        TextToSpeechReplica(args=of_speecht5)
    save_dataset(speecht5_dir, partial(save_voices, size=3))
    with pytest.raises(ModelBroken, match=rf"is \(3,\), the model wants \({SPEAKER_SIZE},\)"):
        TextToSpeechReplica(args=of_speecht5)
    save_dataset(speecht5_dir, save_voices)
    with pytest.raises(ModelNotFound, match=f"hf download {VOCODER} --cache-dir"):
        TextToSpeechReplica(args=of_speecht5)
    write_repository(speecht5_dir, VOCODER, save_vocoder)

    replica = ObservedReplica(args=of_speecht5)
    assert seconds(await speak(replica, "hello")) > 0
    # It is asked in the loop of each piece, not only between them.
    assert replica.said == ["hello"]
    assert replica.looks > 20
    with pytest.raises(BadRequest, match=r"^text: it has no character"):
        await speak(replica, "漢字")
    replica.close()


async def test_speecht5_has_the_voice_of_the_data_set(speecht5_dir: Path) -> None:
    write_repository(speecht5_dir, VOCODER, save_vocoder)
    spoken = []
    for voice, times in ((1, 2), (2, 1)):
        save_dataset(speecht5_dir, partial(save_voices, voice=voice))
        replica = TextToSpeechReplica(args=args(speecht5_dir, "test/speecht5"))
        for _ in range(times):
            torch.manual_seed(0)  # its decoder drops out units even when it speaks
            spoken.append((await speak(replica, "hi")).audio.data)
        replica.close()
    assert spoken[0] == spoken[1] != spoken[2]


async def test_bark_speaks_and_can_be_stopped_within_a_piece(tmp_path: Path) -> None:
    write_repository(tmp_path, "test/bark", save_bark)
    replica = ObservedReplica(args=args(tmp_path, "test/bark"))
    assert seconds(await speak(replica, "hello there"), rate_hz=24_000) > 0.3
    assert replica.said == ["hello there"]
    assert replica.looks > 50
    request = TextToSpeechRequest(text="hello there")
    assert await replica.looks_when_cancelled(request, at=40) == 40
    replica.close()
