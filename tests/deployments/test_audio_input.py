"""Sound as clients send it: read from every container, bounded, refused with a reason."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deployments import audio_input
from deployments.audio_input import decode_audio
from deployments.errors import BadRequest
from tests.deployments.sounds import silent_film, sound_file, tone


def go_on() -> None:
    """Nobody cancels."""


@pytest.mark.parametrize(
    ("kind", "codec", "rate_hz"),
    [
        ("wav", "pcm_s16le", 16_000),
        ("wav", "pcm_s16le", 7_919),
        ("wav", "pcm_f32le", 96_000),
        ("flac", "flac", 44_100),
        ("mp3", "libmp3lame", 44_100),
        ("ogg", "libopus", 48_000),
        ("mp4", "aac", 44_100),
        ("mpegts", "mp2", 32_000),
        ("webm", "libopus", 48_000),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_common_format(kind: str, codec: str, rate_hz: int, channels: int) -> None:
    heard = decode_audio(sound_file(tone(1.5, rate_hz, channels), rate_hz, kind, codec), go_on)
    assert heard.dtype == np.float32
    assert len(heard) == pytest.approx(1.5 * 16_000, rel=0.06)
    # Half of full scale, whatever the number of channels.
    assert np.abs(heard[4_000:-4_000]).max() == pytest.approx(0.5, abs=0.05)


def test_samples_are_exact() -> None:
    samples = tone(0.5)
    heard = decode_audio(sound_file(samples), go_on)
    assert np.array_equal(heard * 32768, samples[0])


def test_the_tail_is_not_lost() -> None:
    """A resampler holds back some samples until it is told that there are no more."""
    heard = decode_audio(sound_file(tone(1, 44_100), 44_100), go_on)
    assert abs(len(heard) - 16_000) <= 1


def test_the_sound_of_a_video() -> None:
    heard = decode_audio(sound_file(tone(2), kind="mp4", codec="aac", video=True), go_on)
    assert len(heard) == pytest.approx(2 * 16_000, rel=0.06)


def test_six_channels() -> None:
    heard = decode_audio(sound_file(tone(0.5, 48_000, 6), 48_000), go_on)
    assert len(heard) == pytest.approx(8_000, abs=1)


def test_the_start_of_a_truncated_file_is_taken() -> None:
    whole = sound_file(tone(4, 44_100), 44_100, "mp3", "libmp3lame")
    heard = decode_audio(whole[: len(whole) // 2], go_on)
    assert len(heard) == pytest.approx(2 * 16_000, rel=0.1)


def test_what_is_damaged_in_the_middle_is_left_out() -> None:
    whole = bytearray(sound_file(tone(4, 44_100), 44_100, "mp3", "libmp3lame"))
    whole[len(whole) // 2 : len(whole) // 2 + 2_000] = b"\xff" * 2_000
    heard = decode_audio(bytes(whole), go_on)
    assert len(heard) > 3 * 16_000


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="PNG")
    return file.getvalue()


MP4 = sound_file(tone(1), kind="mp4", codec="aac")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not audio that can be read"),
        (b"hello", "not audio that can be read"),
        (bytes(range(256)) * 40, "not audio that can be read"),
        (png(), "no audio stream"),
        (silent_film(), "no audio stream"),
        (MP4[: len(MP4) // 2], "not audio that can be read"),
        (sound_file(tone(1))[:44], "not audio that can be read"),
    ],
    ids=["empty", "text", "bytes", "png", "silent film", "cut mp4", "only a header"],
)
def test_what_cannot_be_heard_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=f"^audio: .*{reason}"):
        decode_audio(data, go_on)


def test_too_long_a_recording_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_input, "MAX_DURATION_S", 1.0)
    assert len(decode_audio(sound_file(tone(1)), go_on)) == 16_000
    with pytest.raises(BadRequest, match=r"^audio: longer than"):
        decode_audio(sound_file(tone(1.1)), go_on)


def test_a_frame_that_lasts_too_long_is_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def resampled() -> None:
        raise AssertionError("a sample of this file has become 16,000")

    monkeypatch.setattr(audio_input, "MAX_DURATION_S", 0.5)
    with pytest.raises(BadRequest, match=r"^audio: longer than"):
        decode_audio(sound_file(tone(1), 1), resampled)


def test_a_playlist_cannot_read_this_machines_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private.wav").write_bytes(sound_file(tone(1)))
    monkeypatch.chdir(tmp_path)
    playlist = b"ffconcat version 1.0\nfile private.wav\n"
    with av.open(io.BytesIO(playlist)) as container:
        assert container.streams.audio, "FFmpeg no longer follows these by itself"
    with pytest.raises(BadRequest, match=r"^audio: "):
        decode_audio(playlist, go_on)


def test_decoding_stops_when_nobody_waits() -> None:
    class Gone(Exception):
        pass

    def raise_if_cancelled() -> None:
        raise Gone

    with pytest.raises(Gone):
        decode_audio(sound_file(tone(1)), raise_if_cancelled)


WHOLE = {
    "wav": sound_file(tone(0.2)),
    "flac": sound_file(tone(0.2), kind="flac", codec="flac"),
    "mp3": sound_file(tone(0.2), kind="mp3", codec="libmp3lame"),
    "ogg": sound_file(tone(0.2, 48_000), 48_000, "ogg", "libopus"),
    "mp4": sound_file(tone(0.2), kind="mp4", codec="aac"),
}


@given(st.data())
def test_a_damaged_file_is_sound_or_refused(data: st.DataObject) -> None:
    whole = bytearray(WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    try:
        heard = decode_audio(bytes(whole), go_on)
    except BadRequest:
        return
    assert heard.ndim == 1
    assert np.isfinite(heard).all()
