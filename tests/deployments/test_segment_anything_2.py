"""segment-anything-2 on a tiny model: prompts, shapes, the kept embeddings, refusals."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deployments import segment_anything_2
from deployments.embedding_cache import EmbeddingCache
from deployments.errors import BadRequest, ModelBroken
from deployments.model_args import ModelArgs
from deployments.schemas.segment_anything_2 import MAX_POINTS, SegmentAnything2Request
from deployments.segment_anything_2 import MEAN, STD, SegmentAnything2Replica
from deployments.tiny_models.repository import write_repository

WIDTH, HEIGHT = 64, 48
POINT: dict[str, Any] = {"point_coords": "[[16, 12]]", "point_labels": "[1]"}
ZEROS = [[0.0] * 256] * 256


def picture(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A picture of noise, the same for the same seed."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format="PNG")
    return file.getvalue()


class CountingReplica(SegmentAnything2Replica):
    """The real replica; counts how often an image goes through its encoder."""

    encoded = 0

    def load(self, snapshot: Path) -> None:
        super().load(snapshot)

        def count(*_: object) -> None:
            self.encoded += 1

        self._model.vision_encoder.register_forward_hook(count)


def args(models_dir: Path, model_id: str = "livepeer-ray/tiny-sam2") -> ModelArgs:
    return ModelArgs(pipeline="segment-anything-2", model_id=model_id, models_dir=models_dir)


@pytest.fixture(scope="module")
def replica(tiny_models_dir: Path) -> Iterator[CountingReplica]:
    replica = CountingReplica(args=args(tiny_models_dir))
    yield replica
    replica.close()


Arrays = dict[str, NDArray[np.float32]]


def segment(replica: CountingReplica, image: bytes = b"", **parameters: Any) -> Arrays:
    """Returns what the model computes, before it is written out: most of the time goes there."""
    request = SegmentAnything2Request.parse({"image": image or picture(), **parameters})
    raw = replica.infer(request, lambda: None)
    return {"masks": raw.masks, "scores": raw.scores, "logits": raw.logits}


def equal(one: Arrays, other: Arrays) -> bool:
    return all(np.allclose(one[name], other[name], rtol=1e-3, atol=1e-9) for name in one)


def test_three_masks_of_the_images_size_best_first(replica: CountingReplica) -> None:
    answer = segment(replica, **POINT)
    assert answer["masks"].shape == (3, HEIGHT, WIDTH)
    assert answer["scores"].shape == (3,)
    assert answer["logits"].shape == (3, 256, 256)
    assert list(answer["scores"]) == sorted(answer["scores"], reverse=True)
    # The order is the same in all three: masks are their logits, enlarged.
    low = torch.tensor(answer["logits"])[None]
    enlarged = torch.nn.functional.interpolate(low, (HEIGHT, WIDTH), mode="bilinear")[0]
    np.testing.assert_allclose(answer["masks"], enlarged.numpy(), rtol=1e-3, atol=1e-9)


def test_is_what_transformers_computes(replica: CountingReplica) -> None:
    answer = segment(replica, **POINT)
    pixels = replica._pixels(Image.open(io.BytesIO(picture())))
    x, y = 16 * 1024 / WIDTH, 12 * 1024 / HEIGHT
    with torch.inference_mode():
        expected = replica._model(
            pixel_values=pixels,
            input_points=torch.tensor([[[[x, y]]]]),
            input_labels=torch.tensor([[[1]]]),
        )
    order = expected.iou_scores[0, 0].argsort(descending=True)
    np.testing.assert_allclose(answer["scores"], expected.iou_scores[0, 0][order], rtol=1e-4)
    np.testing.assert_allclose(
        answer["logits"], expected.pred_masks[0, 0][order], rtol=1e-3, atol=1e-9
    )


def test_only_the_small_logits_are_cut(
    replica: CountingReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = segment(replica, **POINT)
    monkeypatch.setattr(segment_anything_2, "MAX_LOGIT", 1e-6)
    cut = segment(replica, **POINT)
    np.testing.assert_array_equal(cut["logits"], whole["logits"].clip(-1e-6, 1e-6))
    np.testing.assert_array_equal(cut["masks"], whole["masks"])


def test_one_mask_when_asked(replica: CountingReplica) -> None:
    answer = segment(replica, multimask_output=False, **POINT)
    assert answer["masks"].shape == (1, HEIGHT, WIDTH)
    assert answer["scores"].shape == (1,)


def test_masks_are_ones_and_zeros_without_logits(replica: CountingReplica) -> None:
    logits = segment(replica, **POINT)
    binary = segment(replica, return_logits=False, **POINT)
    np.testing.assert_array_equal(binary["masks"], logits["masks"] > 0)
    assert set(np.unique(binary["masks"])) == {0.0, 1.0}
    np.testing.assert_array_equal(binary["logits"], logits["logits"])


async def test_the_answer_is_the_text_of_nested_lists(replica: CountingReplica) -> None:
    parameters = {"multimask_output": False, **POINT}
    request = SegmentAnything2Request(image=picture(), **parameters)
    document = (await replica.run(request)).result.document([])
    # ai-runner, routes/segment_anything_2.py: str(array.tolist()) of each.
    assert document == {
        name: str(array.tolist()) for name, array in segment(replica, **parameters).items()
    }
    assert np.array(json.loads(document["masks"])).shape == (1, HEIGHT, WIDTH)


def test_fractions_are_taken_for_pixels(replica: CountingReplica) -> None:
    pixels = segment(replica, box="[8, 12, 32, 36]", **POINT)
    fractions = segment(
        replica,
        point_coords="[[0.25, 0.25]]",
        point_labels="[1]",
        box="[0.125, 0.25, 0.5, 0.75]",
        normalize_coords=False,
    )
    assert equal(pixels, fractions)


def test_every_prompt_matters(replica: CountingReplica) -> None:
    prompts: list[dict[str, Any]] = [
        {},
        POINT,
        {**POINT, "point_labels": "[0]"},
        {"point_coords": "[[16, 12], [50, 40]]", "point_labels": "[1, 0]"},
        {"box": "[8, 12, 32, 36]"},
        {"box": "[8, 12, 32, 36]", **POINT},
        {"mask_input": json.dumps([ZEROS])},
        {"mask_input": json.dumps([ZEROS]), **POINT},
    ]
    answers = [segment(replica, **prompt) for prompt in prompts]
    for i, one in enumerate(answers):
        assert not any(equal(one, other) for other in answers[:i]), prompts[i]


def test_a_box_is_its_two_corners(replica: CountingReplica) -> None:
    box = segment(replica, box="[8, 12, 32, 36]")
    corners = segment(replica, point_coords="[[8, 12], [32, 36]]", point_labels="[2, 3]")
    assert equal(box, corners)


def test_an_answers_logits_are_taken_as_the_next_mask(replica: CountingReplica) -> None:
    first = segment(replica, multimask_output=False, **POINT)
    again = segment(replica, mask_input=str(first["logits"].tolist()), **POINT)
    assert again["masks"].shape == (3, HEIGHT, WIDTH)


def test_labels_without_points_mean_nothing(replica: CountingReplica) -> None:
    assert equal(segment(replica), segment(replica, point_labels="[1]"))


def test_an_image_is_embedded_once(replica: CountingReplica) -> None:
    image = picture(seed=1)
    before = replica.encoded
    first = segment(replica, image, **POINT)
    segment(replica, image, box="[1, 2, 30, 40]")
    again = segment(replica, image, **POINT)
    assert replica.encoded == before + 1
    assert equal(first, again)
    other = segment(replica, picture(seed=2), **POINT)
    assert replica.encoded == before + 2
    assert not equal(first, other)


def test_only_the_last_images_are_kept(
    replica: CountingReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: EmbeddingCache[Any] = EmbeddingCache(max_entries=1, max_bytes=10**9)
    monkeypatch.setattr(replica, "_embeddings", kept)
    before = replica.encoded
    for seed in (1, 2, 2, 1):
        segment(replica, picture(seed))
    assert replica.encoded == before + 3
    assert 0 < kept.size_bytes < 10**9


def test_the_cache_forgets_what_was_not_asked_for_the_longest() -> None:
    cache: EmbeddingCache[str] = EmbeddingCache(max_entries=3, max_bytes=10)
    for key in (b"a", b"b", b"c"):
        cache.put(key, key.decode(), size_bytes=3)
    assert cache.get(b"a") == "a"
    cache.put(b"d", "d", size_bytes=3)
    assert [cache.get(key) for key in (b"a", b"b", b"c", b"d")] == ["a", None, "c", "d"]
    cache.put(b"e", "e", size_bytes=7)
    assert [cache.get(key) for key in (b"a", b"c", b"d", b"e")] == [None, None, "d", "e"]
    cache.put(b"f", "f", size_bytes=11)
    assert cache.get(b"f") is None
    assert cache.size_bytes == 0


def test_an_image_whose_masks_would_be_too_long_is_refused(
    replica: CountingReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_anything_2, "MAX_ANSWER_CHARS", 30 * WIDTH * HEIGHT)
    image, before = picture(seed=5), replica.encoded
    with pytest.raises(BadRequest, match=rf"^image: {WIDTH}x{HEIGHT} pixels .* return_logits=true"):
        segment(replica, image)
    assert replica.encoded == before
    segment(replica, image, return_logits=False)
    segment(replica, image, multimask_output=False)
    with pytest.raises(BadRequest, match=r"^image: .* are too many for 3 mask"):
        segment(replica, image)


@pytest.mark.parametrize("image", [b"hello", b"GIF89a", picture()[:200]])
async def test_what_is_no_image_is_refused(replica: CountingReplica, image: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^image: "):
        await replica.run(SegmentAnything2Request(image=image))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"point_coords": "[[1, 2]"}, "point_coords: want a JSON array of 1 to 1000 points"),
        ({"point_coords": "[1, 2]"}, "point_coords: want"),
        ({"point_coords": "[]"}, "point_coords: want"),
        ({"point_coords": "null"}, "point_coords: want"),
        ({"point_coords": '[["1", 2]]'}, "point_coords: want"),
        ({"point_coords": "[[NaN, 2]]"}, "point_coords: want"),
        ({"point_coords": "[[1e999, 2]]"}, "point_coords: want"),
        ({"point_coords": "[[1e30, 2]]"}, "point_coords: want"),
        ({"point_coords": "[" * 90_000}, "point_coords: want"),
        ({"point_coords": "[[1, 2], [3, 4, 5]]"}, "point_coords: want"),
        ({"point_coords": str([[1, 2]] * (MAX_POINTS + 1))}, "point_coords: want"),
        ({"point_coords": "[[1, 2]]"}, "point_labels: want a label for each of the 1"),
        ({**POINT, "point_labels": "[1, 1]"}, "point_labels: want a label for each of the 1"),
        ({**POINT, "point_labels": "[4]"}, "point_labels: want"),
        ({**POINT, "point_labels": "[-10]"}, "point_labels: want"),
        ({**POINT, "point_labels": "[0.5]"}, "point_labels: want"),
        ({**POINT, "point_labels": "1"}, "point_labels: want"),
        ({"box": "[1, 2, 3]"}, "box: want a JSON array [x1, y1, x2, y2]"),
        ({"box": "[[1, 2, 3, 4], [5, 6, 7, 8]]"}, "box: want"),
        ({"box": "[1, 2, 3, Infinity]"}, "box: want"),
        ({"box": "{}"}, "box: want"),
        ({"mask_input": "[[[0]]]"}, "mask_input: want a JSON array of 1x256x256"),
        ({"mask_input": json.dumps([ZEROS, ZEROS])}, "mask_input: want"),
        ({"mask_input": json.dumps([ZEROS]).replace("0.0", "NaN", 1)}, "mask_input: want"),
        ({"mask_input": json.dumps([ZEROS]).replace("0.0", "1e30", 1)}, "mask_input: want"),
        ({"mask_input": "x" * 5_000_000}, "mask_input: "),
        ({"multimask_output": "maybe"}, "multimask_output: "),
        ({"box": [1, 2, 3, 4]}, "box: "),
    ],
)
def test_a_bad_prompt_is_named_with_its_shape(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest) as error:
        SegmentAnything2Request.parse({"image": b"x", **parameters})
    assert str(error.value).startswith(named)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_defaults_and_accepted_forms() -> None:
    parsed = SegmentAnything2Request.parse({"image": b"x", "box": "", "point_coords": None})
    assert (parsed.points(), parsed.labels(), parsed.corners(), parsed.mask()) == (
        [],
        [],
        None,
        None,
    )
    assert (parsed.multimask_output, parsed.return_logits, parsed.normalize_coords) == (True,) * 3
    batched = SegmentAnything2Request.parse(
        {
            "image": b"x",
            "point_coords": "[[[1, 2.5]]]",
            "point_labels": "[[1.0]]",
            "box": "[[-1, 2, 3, 4]]",
            "mask_input": json.dumps(ZEROS),
        }
    )
    assert batched.points() == [(1.0, 2.5)]
    assert batched.labels() == [1]
    assert batched.corners() == (-1.0, 2.0, 3.0, 4.0)
    assert batched.mask() == ZEROS
    assert "0.0, 0.0" not in repr(batched)


def test_pixels_are_resized_and_normalised(replica: CountingReplica) -> None:
    flat = replica._pixels(Image.new("RGB", (30, 20), (255, 0, 51)))
    assert flat.shape == (1, 3, 1024, 1024)
    for channel, value, mean, std in zip(flat[0], (1.0, 0.0, 0.2), MEAN, STD, strict=True):
        torch.testing.assert_close(channel, torch.full_like(channel, (value - mean) / std))


def test_metas_own_checkpoint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_repository(tmp_path, "a/b", lambda directory: (directory / "b.pt").touch())
    with pytest.raises(ModelBroken, match=r"no config\.json.*hf download a/b --cache-dir"):
        SegmentAnything2Replica(args=args(tmp_path, "a/b"))
