"""DEEPCACHE: most of a denoiser's work is done in every third step and reused in between.

UNets, of images and of video: from one step to the next their deep features change little (Ma,
Fang, Wang: DeepCache, CVPR 2024). A step that reuses them computes the first convolution, which
reads the latents, and the last layer, which joins that with the features of before. What comes
out is, to the pixel, what the authors' package computes, whose last release is of 2023. That one
keeps every block's output, and the step at which a run began, from one request to the next, and
reads the time from the GPU once a step.

Flux and Stable Diffusion 3: diffusers' TaylorSeer extrapolates the transformer's output, and all
blocks are skipped. Its other caches wait for the GPU in each step, need figures measured for each
model, or do nothing here.

Everything is set up for one run of a pipeline and taken down after it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from diffusers import CacheMixin
from diffusers.hooks import HookRegistry, ModelHook, TaylorSeerCacheConfig, apply_taylorseer_cache

INTERVAL = 3
"""Every so many steps all is computed; as ai-runner has it (pipelines/optim/deepcache.py)."""

HOOK = "livepeer_ray_deep_cache"
TAYLORSEER_HOOK = "taylorseer_cache"
"""diffusers' name (hooks/taylorseer_cache.py): only some of its models can disable a cache."""


def reuse_for(denoiser: Any) -> Callable[[], AbstractContextManager[None]] | None:
    """Returns what a run of this UNet or transformer is wrapped in, None for unknown kinds.

    The first call inside computes everything. Nothing is left on the model afterwards, and none
    of its features.
    """
    kinds = {
        "UNet2DConditionModel": _deep_features,
        "UNetSpatioTemporalConditionModel": _deep_features,
        "FluxTransformer2DModel": _extrapolated_output,
        "SD3Transformer2DModel": _extrapolated_output,
    }
    kind = kinds.get(type(denoiser).__name__)
    return None if kind is None else lambda: kind(denoiser)


@contextmanager
def _deep_features(unet: Any) -> Iterator[None]:
    calls = _Calls()
    _hook(unet, calls)
    try:
        for block in unet.down_blocks:
            _hook(block, _Skipped(calls, _answer_of_down_block(block)))
        for block in (unet.mid_block, *unet.up_blocks[:-1]):
            _hook(block, _Skipped(calls, _as_it_is))
        # A layer is a residual block and, in some models, an attention, which answers a tuple.
        last = unet.up_blocks[-1]
        attentions = list(getattr(last, "attentions", ()))[:-1]
        before = [*last.resnets[:-1], *attentions]
        for block in before[:-1]:
            _hook(block, _Skipped(calls, _in_tuple if block in attentions else _as_it_is))
        _hook(before[-1], _Reused(calls))
        yield
    finally:
        # Hooks refer to themselves: the features would wait for the garbage collector.
        calls.features = None
        HookRegistry.check_if_exists_or_initialize(unet).remove_hook(HOOK)


class _Calls(ModelHook):  # type: ignore[misc]  # diffusers is Any here
    """On the UNet: knows whether the present call reuses, and what."""

    def __init__(self) -> None:
        super().__init__()
        self.reuses = False
        self.features: Any = None
        self._number = 0

    def pre_forward(self, _module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.reuses = self._number % INTERVAL != 0
        self._number += 1
        return args, kwargs


class _Skipped(ModelHook):  # type: ignore[misc]
    """On what is left out when features are reused: answers by what it is given."""

    def __init__(self, calls: _Calls, answer: Callable[[Any], Any]) -> None:
        super().__init__()
        self._calls = calls
        self._answer = answer

    def new_forward(self, _module: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._calls.reuses:
            return self.fn_ref.original_forward(*args, **kwargs)
        return self._answer(args[0] if args else kwargs["hidden_states"])


class _Reused(ModelHook):  # type: ignore[misc]
    """On what stands before the last layer: answers with what it computed last."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self._calls = calls

    def new_forward(self, _module: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._calls.reuses:
            self._calls.features = self.fn_ref.original_forward(*args, **kwargs)
        return self._calls.features


def _hook(module: Any, hook: Any) -> None:
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)


def _as_it_is(given: Any) -> Any:
    return given


def _in_tuple(given: Any) -> Any:
    return (given,)


def _answer_of_down_block(block: Any) -> Callable[[Any], Any]:
    """Returns what a down block answers when it is skipped: the first convolution's output.

    The UNet counts on a tensor for each of the block's skip connections. Only the first one of
    all is read, and that is the convolution's own.
    """
    connections = len(block.resnets) + len(block.downsamplers or ())
    return lambda given: (given, (given,) * connections)


@contextmanager
def _extrapolated_output(transformer: Any) -> Iterator[None]:
    import torch

    # Stable Diffusion 3's last block answers with a None, which TaylorSeer does not expect.
    blocks = [f"transformer_blocks.{i}" for i in range(len(transformer.transformer_blocks) - 1)]
    if hasattr(transformer, "single_transformer_blocks"):
        blocks = [r"(single_)?transformer_blocks\.\d+"]
    apply_taylorseer_cache(
        transformer,
        TaylorSeerCacheConfig(
            cache_interval=INTERVAL,
            cache_identifiers=["proj_out"],
            skip_predict_identifiers=blocks,
            taylor_factors_dtype=torch.float32,
        ),
    )
    hooks = HookRegistry.check_if_exists_or_initialize(transformer)
    hooks.invalidate_child_registries_cache()
    try:
        # Flux's text-to-image names a context of its own in each step; the others name none.
        with CacheMixin.cache_context(transformer, "run"):
            yield
    finally:
        hooks.reset_stateful_hooks()
        hooks.remove_hook(TAYLORSEER_HOOK)
