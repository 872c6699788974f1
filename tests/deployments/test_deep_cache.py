"""DEEPCACHE, by the blocks that are computed: which, when, and that nothing of it remains."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deployments.deep_cache import INTERVAL
from deployments.model_args import ModelArgs
from deployments.optimizations import MIN_STEPS_TO_REUSE, Optimizations
from deployments.registry import PIPELINES
from deployments.schemas.base import Request
from deployments.time_left import Cancelled
from deployments.tiny_models.repository import write_repository
from tests.deployments.conftest import TINY_SD, ObservedReplica, request
from tests.deployments.families import FAMILIES
from tests.deployments.inputs import load, outputs, photo, png

MANY, FEW = MIN_STEPS_TO_REUSE, 2

BLOCKS = {
    "ResnetBlock2D",
    "JointTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
}


@pytest.fixture(scope="module")
def models_dir(tiny_models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The larger families beside the tiny models."""
    directory = tmp_path_factory.mktemp("families")
    for repository in tiny_models_dir.glob("models--*"):
        (directory / repository.name).symlink_to(repository)
    for model_id, save in FAMILIES.items():
        write_repository(directory, model_id, save)
    return directory


@pytest.fixture(scope="module")
def reusing(models_dir: Path) -> Iterator[Any]:
    replica = load("text-to-image", TINY_SD, models_dir, deepcache=True)
    yield replica
    replica.close()


def asked(pipeline: str, steps: int, **parameters: Any) -> Request:
    """Returns a request of any diffusion pipeline, with the parameters that it takes."""
    body = {"prompt": "a", "image": png(photo()), "width": 64, "height": 64, "seed": 1}
    return PIPELINES[pipeline].request.parse({**body, "num_inference_steps": steps, **parameters})


@contextmanager
def computed(replica: Any) -> Iterator[Counter[str]]:
    """Counts the calls of the denoiser, and the blocks whose innermost work was done."""
    calls = Counter[str]()
    denoiser = getattr(replica._pipe, "unet", None) or replica._pipe.transformer

    def counting(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([name])

    hooks = [denoiser.register_forward_pre_hook(counting("denoiser"))]
    for block in denoiser.modules():
        if type(block).__name__ in BLOCKS:
            # What skips a block replaces its forward, before which its own hooks still run.
            inside = next(block.children())
            hooks.append(inside.register_forward_pre_hook(counting("block")))
    yield calls
    for hook in hooks:
        hook.remove()


def blocks(replica: Any) -> int:
    denoiser = getattr(replica._pipe, "unet", None) or replica._pipe.transformer
    return sum(type(block).__name__ in BLOCKS for block in denoiser.modules())


class ScalarReads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Counts what on a GPU would be a wait for it: reading a number of a tensor."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if str(function).startswith(("aten._local_scalar_dense", "aten.is_nonzero")):
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("pipeline", "model_id"),
    [
        ("text-to-image", "test/xl"),
        ("image-to-image", "livepeer-ray/tiny-instruct-pix2pix"),
        ("upscale", "livepeer-ray/tiny-upscaler"),
        ("image-to-video", "livepeer-ray/tiny-stable-video"),
    ],
)
async def test_a_unet_computes_everything_in_every_third_step_only(
    models_dir: Path, pipeline: str, model_id: str
) -> None:
    replica = load(pipeline, model_id, models_dir, deepcache=True)
    few = asked(pipeline, FEW)
    (before,) = await outputs(replica, few)
    with computed(replica) as calls:
        await outputs(replica, asked(pipeline, MANY))
    assert calls["denoiser"] == MANY
    whole = MANY // INTERVAL
    # The other steps compute the last layer, which has one residual block.
    assert calls["block"] == whole * blocks(replica) + (MANY - whole)
    with computed(replica) as calls:
        assert await outputs(replica, few) == [before]
    assert calls["block"] == FEW * blocks(replica)
    replica.close()


@pytest.mark.parametrize("model_id", ["test/flux", "test/sd3"])
@pytest.mark.parametrize("pipeline", ["text-to-image", "image-to-image"])
async def test_a_transformer_skips_its_blocks_without_waiting_for_the_gpu(
    models_dir: Path, pipeline: str, model_id: str
) -> None:
    replica = load(pipeline, model_id, models_dir, deepcache=True)
    few, many = asked(pipeline, FEW, strength=1), asked(pipeline, MANY, strength=1)
    (before,) = await outputs(replica, few)
    reads: list[int] = []
    with computed(replica) as calls, ScalarReads() as mode:  # type: ignore[no-untyped-call]
        replica.infer(many, lambda: reads.append(mode.count))
    assert calls["denoiser"] == MANY
    # TaylorSeer computes three steps to know a slope, then every third: 0, 1, 2, 4, 7, 10.
    last_of_sd3 = (MANY - 6) if model_id == "test/sd3" else 0
    assert calls["block"] == 6 * blocks(replica) + last_of_sd3
    # The last look comes after the loop.
    assert len(set(reads[:-1])) == 1
    assert await outputs(replica, few) == [before]
    replica.close()


async def test_the_output_changes_a_little_and_is_the_same_each_time(
    reusing: Any, replica: ObservedReplica
) -> None:
    many = request(num_inference_steps=MANY)
    exact = replica.infer(many, lambda: None).pixels.astype(int)
    first, second = (reusing.infer(many, lambda: None).pixels.astype(int) for _ in range(2))
    assert (first == second).all()
    assert 0 < abs(first - exact).mean() < 5
    few = request(num_inference_steps=MIN_STEPS_TO_REUSE - 1)
    assert await outputs(reusing, few) == await outputs(replica, few)


async def test_a_stopped_request_leaves_nothing_to_the_next(reusing: Any) -> None:
    many, few = request(num_inference_steps=MANY), request()
    before = await outputs(reusing, many, few)
    steps = iter(range(INTERVAL + 2))

    def stop() -> None:
        if next(steps, None) is None:
            raise Cancelled

    with pytest.raises(Cancelled):
        reusing.infer(request(num_inference_steps=MANY, prompt="another", width=128), stop)
    assert not any(
        getattr(module, "_diffusers_hook", None) and module._diffusers_hook.hooks
        for module in reusing._pipe.unet.modules()
    )
    assert await outputs(reusing, many, few) == before


def test_steps_that_strength_leaves_out_do_not_count(models_dir: Path) -> None:
    replica = load("image-to-image", "test/xl", models_dir, deepcache=True)
    for strength, whole in ((0.5, MANY // 2), (1.0, MANY // INTERVAL)):
        with computed(replica) as calls:
            replica.infer(asked("image-to-image", MANY, strength=strength), lambda: None)
        assert calls["block"] // blocks(replica) == whole
    replica.close()


@pytest.mark.parametrize(
    ("model_id", "why"),
    [
        ("org/xl_Lightning", "takes too few steps"),
        ("stabilityai/sd-turbo", "takes too few steps"),
        ("org/other", "not written for a SimpleNamespace"),
    ],
)
def test_models_that_it_does_nothing_for(
    serve_log: pytest.LogCaptureFixture, model_id: str, why: str
) -> None:
    pipe = SimpleNamespace(device=torch.device("cpu"), transformer=torch.nn.Linear(1, 1))
    args = ModelArgs(pipeline="text-to-image", model_id=model_id, models_dir=Path(), deepcache=True)
    optimizations = Optimizations(pipe=pipe, args=args)
    assert f"{model_id}: DEEPCACHE has no effect on this model: it" in serve_log.text
    assert why in serve_log.text
    with optimizations.applied(steps=MANY):
        assert "_diffusers_hook" not in vars(pipe.transformer)
