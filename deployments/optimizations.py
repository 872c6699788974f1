"""What makes a diffusion model fast: what is always on, and aiModels.json's two flags.

Always: no bookkeeping for gradients; on a GPU, convolutions in the layout that its matrix units
read, and TensorFloat-32 where a decoder computes in 32 bits. DEEPCACHE and SFAST, of which a
model has one at most, are in `deployments.deep_cache` and `deployments.compiled`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from deployments.loading import one_line
from deployments.model_args import ModelArgs
from deployments.special_models import is_distilled

logger = logging.getLogger("ray.serve")

MIN_STEPS_TO_REUSE = 12
"""With fewer, steps lie too far apart for one to stand for the next two, and there is little to
gain: twelve leave four that are computed."""


class Optimizations:
    """What surrounds each run of one pipeline. Used in the model thread only.

    Args:
        pipe: a diffusers pipeline on its device.
        args: the model's; a flag that does nothing for it is logged.
    """

    def __init__(self, *, pipe: Any, args: ModelArgs) -> None:
        self._model_id = args.model_id
        self._pipeline = type(pipe).__name__
        self._denoiser: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        if pipe.device.type == "cuda":
            use_matrix_units(pipe)
        self._reuse = self._deepcache() if args.deepcache else None
        self._compiled = self._sfast() if args.sfast else None

    @contextmanager
    def applied(self, *, steps: int) -> Iterator[None]:
        """Runs what is inside, one run of the pipeline, optimized.

        Args:
            steps: how many the run takes.
        """
        import torch

        reuse: Callable[[], AbstractContextManager[None]] = nullcontext
        if self._reuse is not None and steps >= MIN_STEPS_TO_REUSE:
            reuse = self._reuse
        compiled = nullcontext() if self._compiled is None else self._compiled.applied()
        with torch.inference_mode(), reuse(), compiled:
            yield

    def warm_up(self, run: Callable[[], None]) -> None:
        """Runs the warm-up, in which all that is to be compiled is compiled."""
        if self._compiled is None:
            run()
            return
        try:
            run()
        except Exception as error:  # noqa: BLE001 (what is wrong beside the compiler shows below)
            logger.warning(
                "%s: SFAST has no effect, the model does not compile: %s",
                self._model_id,
                one_line(error),
            )
            self._compiled.give_up()
        else:
            self._compiled.finish()
            return
        # Out here, where no traceback holds the tensors of the first attempt.
        run()

    def _deepcache(self) -> Callable[[], AbstractContextManager[None]] | None:
        from deployments.deep_cache import reuse_for

        if is_distilled(self._model_id):
            self._no_effect("DEEPCACHE", "it takes too few steps")
            return None
        reuse = reuse_for(self._denoiser)
        if reuse is None:
            self._no_effect("DEEPCACHE")
        return reuse

    def _sfast(self) -> Any:
        from deployments.compiled import Compiled

        try:
            return Compiled(self._denoiser)
        except ValueError:
            self._no_effect("SFAST")
            return None

    def _no_effect(self, flag: str, why: str = "") -> None:
        logger.warning(
            "%s: %s has no effect on this model: %s",
            self._model_id,
            flag,
            why or f"it is not written for a {self._pipeline}",
        )


def use_matrix_units(pipe: Any) -> None:
    """Prepares a pipeline for the matrix units of NVIDIA GPUs."""
    import torch

    # What still computes in 32 bits, decoders that would overflow 16, needs their range and not
    # their digits. The older of torch's two ways to say so: its compiler reads that one.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    for name in ("unet", "vae"):
        if (model := getattr(pipe, name, None)) is not None:
            channels_last(model)


def channels_last(model: Any) -> None:
    """Lays out the weights of two-dimensional convolutions as matrix units read them.

    `model.to(memory_format=...)` would not take a video model, whose convolutions over time have
    five dimensions.
    """
    import torch

    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
