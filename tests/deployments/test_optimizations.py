"""What is always on, and SFAST: what is compiled, when, and that the images stay the same.

The compiler's backend is replaced by one that runs what it is given: torch's own takes a minute.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from deployments import compiled
from deployments.assembly import find_files
from deployments.loading import find_snapshot
from deployments.model_args import ModelArgs
from deployments.optimizations import Optimizations, channels_last, use_matrix_units
from deployments.tiny_models.repository import write_repository
from deployments.tiny_models.stable_diffusion import unet
from deployments.tiny_models.stable_video import save_stable_video
from tests.deployments.conftest import TINY_SD, ObservedReplica, args, request
from tests.deployments.families import save_flux, save_sd3
from tests.deployments.inputs import load, outputs
from tests.deployments.test_loras import save_lora


class Backend(Counter[str]):
    """Counts what it compiles and how often that runs."""

    def __call__(self, graph: Any, _inputs: Any) -> Callable[..., Any]:
        self.update(["compiled"])

        def run(*given: Any) -> Any:
            self.update(["ran"])
            return graph.forward(*given)

        return run


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    counting = Backend()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "BACKEND", counting)
        patch.setenv(compiled.CACHE_VARIABLE, "nowhere")
        yield counting
    torch.compiler.reset()


@pytest.fixture(scope="module")
def fast(tiny_models_dir: Path, backend: Backend) -> Iterator[Any]:
    replica = ObservedReplica(args=args(tiny_models_dir, sfast=True))
    # One image and then two: unguided models compute them as batches of one and of two.
    assert replica.prompts == ["warm-up", "warm-up"]
    assert backend["compiled"]
    yield replica
    replica.close()


async def test_all_sizes_and_batches_run_compiled_and_nothing_more_is_compiled(
    fast: Any, replica: ObservedReplica, backend: Backend
) -> None:
    kinds = [type(block).__name__ for block in fast._pipe.unet.modules()]
    for asked in (
        request(width=128, height=128),
        request(width=256, height=128),
        request(width=136, height=256, num_images_per_prompt=3),
        request(width=128, height=128, num_images_per_prompt=2, guidance_scale=1),
    ):
        before = Counter(backend)
        images = await outputs(fast, asked)
        # This scheduler takes a step more than it is asked for.
        assert backend - before == {"ran": 3 * kinds.count("BasicTransformerBlock")}
        assert images == await outputs(replica, asked)


async def test_what_was_not_compiled_runs_as_it_was(
    fast: Any, replica: ObservedReplica, backend: Backend
) -> None:
    """64x64 leaves the innermost blocks a single latent, for which torch compiles apart."""
    before = Counter(backend)
    assert await outputs(fast, request()) == await outputs(replica, request())
    assert backend["compiled"] == before["compiled"]


async def test_loras_act_on_a_compiled_model(
    tiny_models_dir: Path, fast: Any, replica: ObservedReplica, backend: Backend
) -> None:
    files = find_files(TINY_SD, tiny_models_dir)
    write_repository(tiny_models_dir, "test/for-sfast", lambda at: save_lora(files, at))
    plain = request(width=128, height=128)
    with_lora = plain.model_copy(update={"loras": '{"test/for-sfast": 1}'})
    before = Counter(backend)
    images = await outputs(fast, plain, with_lora, plain)
    assert images == await outputs(replica, plain, with_lora, plain)
    assert len(set(images)) == 2
    assert backend["compiled"] == before["compiled"]


def test_a_model_that_does_not_compile_runs_as_it_is(
    tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch, serve_log: pytest.LogCaptureFixture
) -> None:
    def no_compiler(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr(compiled, "BACKEND", no_compiler)
    slow = load("text-to-image", TINY_SD, tiny_models_dir, sfast=True)
    assert "SFAST has no effect, the model does not compile" in serve_log.text
    assert "no C++ compiler here" in serve_log.text
    assert slow.infer(request(), lambda: None).pixels.any()
    slow.close()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ("/volume", "/volume"),
        (None, "/home/of-the-worker/.livepeer-ray/compiled"),
        # What torch itself sets when it is imported.
        (default_cache_dir(), "/home/of-the-worker/.livepeer-ray/compiled"),
    ],
)
def test_where_the_compilers_output_is_kept(
    monkeypatch: pytest.MonkeyPatch, named: str | None, kept: str
) -> None:
    monkeypatch.setenv("HOME", "/home/of-the-worker")
    monkeypatch.delenv(compiled.CACHE_VARIABLE)
    if named is not None:
        monkeypatch.setenv(compiled.CACHE_VARIABLE, named)
    compiled.Compiled(unet())
    assert os.environ[compiled.CACHE_VARIABLE] == kept


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("save", "blocks"), [(save_sd3, 2), (save_flux, 3), (save_stable_video, 8)]
)
def test_the_repeated_blocks_of_each_family(
    tmp_path: Path, save: Callable[[Path], None], blocks: int
) -> None:
    """The library names them for Flux and for the UNets of images only."""
    write_repository(tmp_path, "test/any", save)
    pipe = DiffusionPipeline.from_pretrained(find_snapshot("test/any", tmp_path))
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    compiled.Compiled(denoiser)
    assert sum(block._compiled_call_impl is not None for block in denoiser.modules()) == blocks


def test_sfast_on_an_unknown_model_is_logged(serve_log: pytest.LogCaptureFixture) -> None:
    pipe = SimpleNamespace(device=torch.device("cpu"), transformer=None, unet=None)
    model = ModelArgs(pipeline="text-to-image", model_id="org/other", models_dir=Path(), sfast=True)
    Optimizations(pipe=pipe, args=model)
    assert (
        "org/other: SFAST has no effect on this model: it is not written for a SimpleNamespace"
        in serve_log.text
    )


def test_the_model_runs_without_bookkeeping_for_gradients(replica: ObservedReplica) -> None:
    seen: list[bool] = []
    replica.infer(request(), lambda: seen.append(torch.is_inference_mode_enabled()))
    # The last look comes after the run.
    assert seen == [True, True, True, False]


def test_the_layout_for_matrix_units_changes_no_image() -> None:
    model = unet()
    model.over_time = torch.nn.Conv3d(2, 2, 3)
    given = {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, 32),
    }
    with torch.inference_mode():
        before = model(**given).sample
        channels_last(model)
        after = model(**given).sample
    assert model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(before, after, atol=1e-5)


def test_tf32_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    precision = torch.get_float32_matmul_precision()
    convolution = torch.nn.Conv2d(4, 8, 3)
    try:
        use_matrix_units(SimpleNamespace(unet=None, vae=convolution))
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(precision)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
