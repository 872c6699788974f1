"""Models of all kinds, computing in the types that they do on a GPU."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments import assembly, audio_to_text, image_to_text, safety, text_to_speech
from deployments.image_to_image import ImageToImageReplica
from deployments.loading import choose_dtype
from deployments.registry import PIPELINES
from deployments.special_models import LIGHTNING
from deployments.text_to_image import TextToImageReplica
from deployments.tiny_models.repository import write_repository
from tests.deployments.conftest import TINY_SD, pixels, request
from tests.deployments.families import FAMILIES
from tests.deployments.inputs import Asked, load, looks, outputs, photo, png
from tests.deployments.speech_models import save_bark
from tests.deployments.test_audio_to_text import TINY_WHISPER, noise
from tests.deployments.test_image_to_image import TINY_PIX2PIX
from tests.deployments.test_image_to_image import request as image_request
from tests.deployments.test_safety import write_checker

pytestmark = pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def _types_of_a_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (assembly, safety, audio_to_text, image_to_text, text_to_speech):
            patch.setattr(
                module, "choose_dtype", lambda kind, _: choose_dtype(kind, torch.device("cuda"))
            )
        yield


@pytest.fixture(scope="module")
def models_dir(tiny_models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models, and a checker that flags everything."""
    directory = tmp_path_factory.mktemp("families") / "models"
    shutil.copytree(tiny_models_dir, directory, symlinks=True)
    for model_id, save in FAMILIES.items():
        write_repository(directory, model_id, save)
    write_repository(directory, "test/bark", save_bark)
    write_checker(directory, threshold=-1.1)
    return directory


@pytest.fixture(scope="module", params=FAMILIES)
def drawing(request: pytest.FixtureRequest, models_dir: Path) -> Iterator[TextToImageReplica]:
    replica = load("text-to-image", request.param, models_dir)
    yield replica
    replica.close()


@pytest.fixture(scope="module", params=FAMILIES)
def changing(request: pytest.FixtureRequest, models_dir: Path) -> Iterator[ImageToImageReplica]:
    replica = load("image-to-image", request.param, models_dir)
    yield replica
    replica.close()


async def test_text_to_image(drawing: TextToImageReplica) -> None:
    asked = request(width=136, height=72, num_images_per_prompt=2, seed=40)
    together = (await drawing.run(asked)).result
    assert [image.seed for image in together.images] == [40, 41]
    assert [image.nsfw for image in together.images] == [True, True]
    alone = (await drawing.run(asked.model_copy(update={"num_images_per_prompt": 1}))).result
    first, second = pixels(together)
    # Transformers join 2x2 latents: they draw 144x80.
    assert first.shape == second.shape == (72, 136, 3)
    assert np.std(first) > 10
    assert abs(first - second).max() > 10
    assert abs(first - pixels(alone)[0]).mean() < 1


async def test_each_text_encoder_reads_its_own_prompt(drawing: TextToImageReplica) -> None:
    encoders = 3 if drawing.args.model_id == "test/sd3" else 2
    prompts = ["a|a|a", *("|".join("b" if i == j else "a" for i in range(3)) for j in range(3))]
    images = await outputs(drawing, *(request(prompt) for prompt in prompts[: 1 + encoders]))
    assert len(set(images)) == 1 + encoders


async def test_flux_alone_has_no_negative_prompt(drawing: TextToImageReplica) -> None:
    plain, negative = await outputs(drawing, request(), request(negative_prompt="fog|rain"))
    assert (plain == negative) == (drawing.args.model_id == "test/flux")


async def test_image_to_image(changing: ImageToImageReplica) -> None:
    asked = image_request(image=png(photo(136, 72)), num_images_per_prompt=2, seed=40)
    together = (await changing.run(asked)).result
    alone = (await changing.run(asked.model_copy(update={"num_images_per_prompt": 1}))).result
    first, second = pixels(together)
    assert first.shape == ((72, 136, 3) if changing.args.model_id == "test/xl" else (64, 128, 3))
    assert abs(first - second).max() > 10
    assert abs(first - pixels(alone)[0]).mean() < 1


def test_requests_drawn_at_once_get_what_they_would_alone(drawing: TextToImageReplica) -> None:
    asked = [
        request("a|b|c", seed=3, negative_prompt="fog"),
        request("a harbour", seed=4, negative_prompt="rain"),
    ]
    _same_as_alone(drawing, asked)


def test_requests_changed_at_once_get_what_they_would_alone(changing: ImageToImageReplica) -> None:
    asked = [
        image_request(prompt="a harbour", seed=3),
        image_request(prompt="a mill", seed=4, image=png(photo(seed=1))),
    ]
    _same_as_alone(changing, asked)


def _same_as_alone(replica: Any, asked: list[Any]) -> None:
    together = replica.infer_together(asked, lambda: None)
    for rendered, one in zip(together, asked, strict=True):
        alone = replica.infer(one, lambda: None).pixels.astype(np.int16)
        # In 16 bits a sum that is ordered differently shows in a few levels.
        assert abs(rendered.pixels - alone).mean() < 1
    assert abs(together[0].pixels.astype(np.int16) - together[1].pixels).mean() > 5


@pytest.mark.parametrize(
    "change", [{"image": png(photo(seed=1))}, {"strength": 0.4}, {"prompt": "a harbour"}]
)
async def test_what_image_to_image_is_given_counts(
    changing: ImageToImageReplica, change: dict[str, Any]
) -> None:
    plain, changed = await outputs(changing, image_request(), image_request(**change))
    assert plain != changed


async def test_a_fraction_of_a_step_is_not_taken(changing: ImageToImageReplica) -> None:
    """Flux and Stable Diffusion 3 would take it, and then see nothing of the image."""
    assert looks(changing, image_request(num_inference_steps=3, strength=0.8)) == 2 + 1


@pytest.mark.parametrize("drawing", ["test/xl"], indirect=True)
async def test_xl_decodes_in_32_bits_where_16_would_overflow(drawing: TextToImageReplica) -> None:
    types: list[torch.dtype] = []
    watched = drawing._vae.decoder.register_forward_hook(
        lambda _module, _given, image: types.append(image.dtype)
    )
    await drawing.run(request())
    watched.remove()
    assert types == [torch.float32]
    assert drawing._pipe.unet.dtype == drawing._vae.dtype == torch.float16


async def test_lightning_draws_in_its_own_steps_without_guidance(lightning_dir: Path) -> None:
    replica = load("text-to-image", f"{LIGHTNING}-4step", lightning_dir)
    assert replica._pipe.unet.dtype == torch.float16
    assert replica.describe(request(num_inference_steps=50)) == "64x64, 1 image, 4 steps"
    # And once before the images are checked.
    assert looks(replica, request(num_inference_steps=50)) == 4 + 1
    asked = Asked(replica._pipe)
    replica._pipe = asked
    few, many = await outputs(
        replica,
        request(num_inference_steps=1, guidance_scale=0),
        request(num_inference_steps=50, guidance_scale=9),
    )
    assert few == many
    assert (asked["num_inference_steps"], asked["guidance_scale"]) == (4, 0)
    # From pure noise: SDXL's own would begin at 751.
    assert asked.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    replica.close()


async def test_lightning_changes_an_image_in_at_least_a_step(lightning_dir: Path) -> None:
    replica = load("image-to-image", f"{LIGHTNING}-2step", lightning_dir)
    for strength, steps in ((0.01, 1), (0.8, 1), (1, 2)):
        assert looks(replica, image_request(strength=strength)) == steps + 1
    plain, again, other = await outputs(
        replica,
        image_request(),
        image_request(num_inference_steps=100, guidance_scale=1),
        image_request(image=png(photo(seed=1))),
    )
    assert plain == again
    assert plain != other
    replica.close()


@pytest.mark.parametrize(
    ("pipeline", "model_id"),
    [
        ("text-to-image", TINY_SD),
        ("image-to-image", TINY_PIX2PIX),
        ("upscale", "livepeer-ray/tiny-upscaler"),
        ("image-to-video", "livepeer-ray/tiny-stable-video"),
    ],
)
async def test_the_other_pipelines_in_a_gpus_types(
    models_dir: Path, pipeline: str, model_id: str
) -> None:
    replica = load(pipeline, model_id, models_dir)
    body = {"prompt": "a", "image": png(photo()), "width": 64, "height": 64, "seed": 1}
    asked = PIPELINES[pipeline].request.parse({**body, "num_inference_steps": 2})
    plain, again = [(await replica.run(asked)).result for _ in range(2)]
    assert plain.files[0].data == again.files[0].data
    assert plain.document(["a"])["images"][0]["nsfw"]
    assert replica._vae.dtype == torch.float16
    replica.close()


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.filterwarnings(r"ignore:std\(\).* degrees of freedom:UserWarning")
@pytest.mark.parametrize(
    ("pipeline", "model_id", "body"),
    [
        ("audio-to-text", TINY_WHISPER, {"audio": noise(34), "return_timestamps": "sentence"}),
        ("audio-to-text", TINY_WHISPER, {"audio": noise(5), "return_timestamps": "word"}),
        ("image-to-text", "livepeer-ray/tiny-blip", {"image": png(photo()), "prompt": "a"}),
        ("text-to-speech", "test/bark", {"text": "hello there"}),
    ],
)
async def test_pipelines_without_diffusion_in_a_gpus_types(
    models_dir: Path, pipeline: str, model_id: str, body: dict[str, Any]
) -> None:
    replica = load(pipeline, model_id, models_dir)
    model = replica._pipe.model if hasattr(replica, "_pipe") else replica._model
    assert model.dtype == torch.float16
    result = (await replica.run(PIPELINES[pipeline].request.parse(body))).result
    assert result.files or result.text
    replica.close()
