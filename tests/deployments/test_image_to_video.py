"""image-to-video on a tiny Stable Video Diffusion."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deployments.errors import BadRequest
from deployments.image_to_video import ImageToVideoReplica
from deployments.schemas.base import Result
from deployments.schemas.image_to_video import FramesResult, ImageToVideoRequest
from deployments.tiny_models.stable_video import FRAMES
from tests.deployments.inputs import Asked, load, looks, photo, png


def request(**parameters: Any) -> ImageToVideoRequest:
    quick = {
        "image": png(photo()),
        "width": 64,
        "height": 64,
        "num_inference_steps": 1,
        "seed": 1,
    }
    return ImageToVideoRequest.parse({**quick, **parameters})


def read(result: Result) -> tuple[NDArray[np.uint8], int]:
    """Returns a video's frames, N x H x W x 3, and its frames per second."""
    with av.open(io.BytesIO(result.files[0].data), "r") as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), int(stream.average_rate)


@pytest.fixture(scope="module")
def video(tiny_models_dir: Path) -> Iterator[ImageToVideoReplica]:
    replica = load("image-to-video", "livepeer-ray/tiny-stable-video", tiny_models_dir)
    yield replica
    replica.close()


def test_defaults_are_the_reference_runners() -> None:
    assert ImageToVideoRequest.parse({"image": b"x"}).model_dump() == {
        "model_id": "",
        "image": b"x",
        "height": 576,
        "width": 1024,
        "fps": 6,
        "motion_bucket_id": 127,
        "noise_aug_strength": 0.02,
        "safety_check": True,
        "seed": None,
        "num_inference_steps": 25,
    }


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"image": None}, "image"),
        ({"width": 100}, "width"),
        ({"height": 0}, "height"),
        ({"width": 2048, "height": 1024}, "width and height"),
        ({"fps": 0}, "fps"),
        ({"fps": 61}, "fps"),
        ({"motion_bucket_id": -1}, "motion_bucket_id"),
        ({"motion_bucket_id": 10**9}, "motion_bucket_id"),
        ({"noise_aug_strength": -0.1}, "noise_aug_strength"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest, match=rf"^{named}: "):
        request(**parameters)


@pytest.mark.parametrize(("width", "height", "fps"), [(64, 64, 6), (136, 72, 25)])
async def test_the_video_has_the_models_frames_and_the_requests_size_and_rate(
    video: ImageToVideoReplica, width: int, height: int, fps: int
) -> None:
    asked = request(width=width, height=height, fps=fps, image=png(photo(50, 90)))
    result = (await video.run(asked)).result
    frames, rate = read(result)
    assert frames.shape == (FRAMES, height, width, 3)
    assert rate == fps
    assert np.std(frames) > 5
    assert [file.media_type for file in result.files] == ["video/mp4"]
    assert result.document(["a.mp4"]) == {"images": [{"url": "a.mp4", "seed": 1, "nsfw": False}]}


async def test_the_same_request_gives_the_same_bytes_and_every_parameter_counts(
    video: ImageToVideoReplica,
) -> None:
    plain, again = [(await video.run(request())).result for _ in range(2)]
    assert plain.files[0].data == again.files[0].data
    for change in (
        {"image": png(photo(seed=1))},
        {"fps": 7},
        {"motion_bucket_id": 200},
        {"noise_aug_strength": 0.5},
        {"num_inference_steps": 2},
        {"seed": 2},
    ):
        changed = (await video.run(request(**change))).result
        # The pixels, as another rate alone makes another file.
        assert np.any(read(plain)[0] != read(changed)[0]), change


async def test_over_http_the_answer_is_the_frames(video: ImageToVideoReplica) -> None:
    result = (await video.run(request(width=136, height=72).for_http())).result
    assert isinstance(result, FramesResult)
    pictures = [Image.open(io.BytesIO(file.data)) for file in result.files]
    assert [picture.size for picture in pictures] == [(136, 72)] * FRAMES
    # The same pictures as in the video, which loses a little.
    frames, _ = read((await video.run(request(width=136, height=72))).result)
    difference = np.stack([np.asarray(picture) for picture in pictures]).astype(int) - frames
    assert np.abs(difference).mean() < 8
    urls = [f"{number}.png" for number in range(FRAMES)]
    (document,) = result.document(urls)["frames"]
    assert document == [{"url": url, "seed": 1, "nsfw": False} for url in urls]


async def test_few_frames_are_decoded_at_once(
    video: ImageToVideoReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(video._pipe)
    monkeypatch.setattr(video, "_pipe", asked)
    await video.run(request())
    assert asked["decode_chunk_size"] == 4


async def test_a_decoder_left_in_another_type_is_put_right(video: ImageToVideoReplica) -> None:
    """As after a request that ran out of memory while diffusers had widened the decoder."""
    video._pipe.vae.to(torch.float64)
    assert (await video.run(request())).result.files


async def test_an_image_that_cannot_be_used_is_refused_and_the_next_is_served(
    video: ImageToVideoReplica,
) -> None:
    with pytest.raises(BadRequest, match=r"^image: .*not an image"):
        await video.run(request(image=b"hello"))
    assert (await video.run(request())).result.files


def test_the_safety_checker_sees_the_first_frame(
    video: ImageToVideoReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Checker:
        """Flags everything and remembers it."""

        def __init__(self) -> None:
            self.seen: list[NDArray[np.uint8]] = []

        def flag(self, images: NDArray[np.uint8]) -> list[bool]:
            self.seen.append(images)
            return [True] * len(images)

    checker = Checker()
    monkeypatch.setattr(video, "_safety", checker)
    clip = video.infer(request(), lambda: None)
    assert clip.nsfw
    assert np.array_equal(checker.seen[0], clip.frames[:1])
    assert not video.infer(request(safety_check=False), lambda: None).nsfw
    assert len(checker.seen) == 1


def test_cancelling_is_looked_for_after_each_step(video: ImageToVideoReplica) -> None:
    assert looks(video, request(num_inference_steps=2)) == 2
