"""Every parameter of audio-to-text, on a real Whisper of random weights."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.audio_to_text import AudioToTextReplica
from deployments.errors import BadRequest, ModelBroken
from deployments.model_args import ModelArgs
from deployments.registry import PIPELINES
from deployments.schemas.audio_to_text import AudioToTextRequest, AudioToTextResult
from tests.deployments.inputs import Observed
from tests.deployments.sounds import sound_file, tone

TINY_WHISPER = "livepeer-ray/tiny-whisper"

pytestmark = [
    # In transformers, where random weights name words that take no time,
    pytest.mark.filterwarnings(r"ignore:std\(\).* degrees of freedom:UserWarning"),
    # and where it hands tensors to numpy.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


class ObservedReplica(Observed, AudioToTextReplica):
    """The real replica, with a hand on its tokens."""


def args(models_dir: Path, model_id: str = TINY_WHISPER) -> ModelArgs:
    return ModelArgs(pipeline="audio-to-text", model_id=model_id, models_dir=models_dir)


@pytest.fixture(scope="module")
def replica(tiny_models_dir: Path) -> Iterator[ObservedReplica]:
    replica = ObservedReplica(args=args(tiny_models_dir))
    yield replica
    replica.close()


def noise(seconds: float) -> bytes:
    random = np.random.default_rng(0)
    samples = random.normal(0, 3000, (1, int(seconds * 16_000))).clip(-32768, 32767)
    return sound_file(samples.astype(np.int16))


async def transcribe(replica: ObservedReplica, audio: bytes, **more: Any) -> AudioToTextResult:
    request = AudioToTextRequest.parse({"audio": audio, **more})
    result: AudioToTextResult = (await replica.run(request)).result
    return result


async def test_the_document_is_the_runners(replica: ObservedReplica) -> None:
    result = await transcribe(replica, noise(5))
    document = result.document([])
    assert result.files == ()
    assert list(document) == ["text", "chunks"]
    assert document["text"]
    assert document["chunks"]
    for chunk in document["chunks"]:
        assert list(chunk) == ["timestamp", "text"]
        assert len(chunk["timestamp"]) == 2


@pytest.mark.parametrize("seconds", [0.1, 5, 34])
@pytest.mark.parametrize("timestamps", ["false", "true", "word"])
async def test_every_kind_of_timestamps_at_every_length(
    replica: ObservedReplica, seconds: float, timestamps: str
) -> None:
    result = await transcribe(replica, noise(seconds), return_timestamps=timestamps)
    assert result.text
    assert bool(result.chunks) == (timestamps != "false")
    times = [time for chunk in result.chunks for time in (chunk.start_s, chunk.end_s)]
    for time in times:
        assert time is None or (math.isfinite(time) and 0 <= time <= seconds)


async def test_long_audio_is_cut_into_chunks_that_share_a_pass(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = await transcribe(replica, noise(29), return_timestamps="false")
    long = await transcribe(replica, noise(64), return_timestamps="false")
    assert len(long.text) > len(short.text)
    looks_in_one_pass = replica.looks
    monkeypatch.setattr("deployments.audio_to_text.BATCH_SIZE", 1)
    one_by_one = await transcribe(replica, noise(64), return_timestamps="false")
    assert one_by_one == long
    # 32 tokens a pass; the packets of the file are as many as before.
    assert replica.looks >= looks_in_one_pass + 2 * 32


async def test_the_sound_decides_the_text(replica: ObservedReplica) -> None:
    texts = {
        (await transcribe(replica, audio)).text for audio in (noise(5), sound_file(tone(5) // 2))
    }
    assert len(texts) == 2


async def test_sentences_and_words_differ(replica: ObservedReplica) -> None:
    sentences = await transcribe(replica, noise(20), return_timestamps="sentence")
    words = await transcribe(replica, noise(20), return_timestamps="word")
    assert sentences.text == words.text
    assert sentences.chunks != words.chunks


async def test_words_do_not_leave_the_model_slow(replica: ObservedReplica) -> None:
    config = replica._pipe.model.config
    before = config._attn_implementation
    assert before != "eager"
    plain = await transcribe(replica, noise(5))
    await transcribe(replica, noise(5), return_timestamps="word")
    assert config._attn_implementation == before
    assert await transcribe(replica, noise(5)) == plain


async def test_silence_and_video_are_served(replica: ObservedReplica) -> None:
    await transcribe(replica, sound_file(np.zeros((2, 48_000), np.int16), 48_000))
    film = sound_file(tone(2), kind="mp4", codec="aac", video=True)
    assert (await transcribe(replica, film)).text


@pytest.mark.parametrize(
    ("spelling", "meaning"),
    [
        ("true", "sentence"),
        ("True", "sentence"),
        ("1", "sentence"),
        ("sentence", "sentence"),
        ("false", "none"),
        ("0", "none"),
        ("WORD", "word"),
        (None, "sentence"),
    ],
)
def test_spellings_of_return_timestamps(spelling: str | None, meaning: str) -> None:
    request = AudioToTextRequest.parse({"audio": b"x", "return_timestamps": spelling})
    assert request.return_timestamps == meaning


@pytest.mark.parametrize("spelling", ["", "char", "yes", "none", 2, []])
def test_other_spellings_are_refused(spelling: object) -> None:
    with pytest.raises(BadRequest, match=r"^return_timestamps: must be"):
        AudioToTextRequest.parse({"audio": b"x", "return_timestamps": spelling})


@pytest.mark.parametrize("metadata", ['{"duration":"12"}', "{", "", {"duration": 1}, None])
def test_metadata_may_be_anything(metadata: object) -> None:
    AudioToTextRequest.parse({"audio": b"x", "metadata": metadata})


def test_the_audio_must_be_there_and_is_not_logged() -> None:
    with pytest.raises(BadRequest, match=r"^audio: "):
        AudioToTextRequest.parse({"audio": None})
    assert "secret" not in repr(AudioToTextRequest(audio=b"secret"))
    assert PIPELINES["audio-to-text"].file == "audio"


async def test_what_is_no_audio_is_refused_and_the_next_request_works(
    replica: ObservedReplica,
) -> None:
    with pytest.raises(BadRequest, match=r"^audio: "):
        await transcribe(replica, b"no audio")
    assert (await transcribe(replica, noise(1))).text


async def test_words_of_a_model_without_alignment(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(replica._pipe.model.generation_config, "alignment_heads")
    with pytest.raises(BadRequest, match=r"^return_timestamps: .*alignment_heads"):
        await transcribe(replica, noise(1), return_timestamps="word")
    assert (await transcribe(replica, noise(1))).text


async def test_words_of_too_long_a_recording(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.audio_to_text.MAX_WORDS_S", 60.0)
    with pytest.raises(BadRequest, match="served up to 1 minutes of audio, this file has 2"):
        await transcribe(replica, noise(120), return_timestamps="word")


async def test_a_cancelled_request_stops_at_its_next_token(replica: ObservedReplica) -> None:
    request = AudioToTextRequest.parse({"audio": noise(1), "return_timestamps": "false"})
    await replica.run(request)
    at = replica.looks - 20
    assert await replica.looks_when_cancelled(request, at=at) == at


def test_a_model_of_another_family_is_named(tiny_models_dir: Path) -> None:
    with pytest.raises(ModelBroken, match="tiny-sd"):
        AudioToTextReplica(args=args(tiny_models_dir, "livepeer-ray/tiny-sd"))
