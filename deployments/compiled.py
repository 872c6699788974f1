"""SFAST: a denoiser's repeated blocks are compiled by torch before the replica is ready.

Only the blocks of which the most time is made, and each kind of them once ("regional"
compilation): the whole of SDXL would take the compiler minutes. With symbolic sizes, so that one
compilation serves images of all sizes and batches. No request ever waits for the compiler: what
has not been compiled by then, as after a LoRA has changed the blocks, runs as it was.

The reference means stable-fast by this flag. That traces the model and then knows nothing of
LoRAs, and has no release for the torch that we run.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger("ray.serve")

BACKEND = "inductor"
"""torch.compile's: it writes Triton for GPUs and C++ for CPUs."""

CACHE_DIR = Path("~/.livepeer-ray/compiled")
"""Where the compiler keeps its output for the next start; its own default is lost with /tmp."""

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""torch's, by which the operator names another directory."""

REPEATED = {
    "SD3Transformer2DModel": ["JointTransformerBlock"],
    "UNetSpatioTemporalConditionModel": ["BasicTransformerBlock", "TemporalBasicTransformerBlock"],
}
"""Where diffusers does not name a model's repeated blocks itself."""


class Compiled:
    """A denoiser whose blocks are compiled when they are first called.

    Args:
        denoiser: a diffusers UNet or transformer.

    Raises:
        ValueError: it is not known which blocks repeat.
    """

    def __init__(self, denoiser: Any) -> None:
        _keep_output()
        repeated = getattr(denoiser, "_repeated_blocks", None) or REPEATED.get(
            type(denoiser).__name__
        )
        if not repeated:
            raise ValueError(f"no repeated blocks are known of a {type(denoiser).__name__}")
        denoiser._repeated_blocks = repeated
        denoiser.compile_repeated_blocks(backend=BACKEND, dynamic=True)
        self._stance = "default"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Runs what is inside with the compiled blocks."""
        import torch

        with torch.compiler.set_stance(self._stance):
            yield

    def finish(self) -> None:
        """From now on nothing more is compiled."""
        self._stance = "eager_on_recompile"

    def give_up(self) -> None:
        """From now on the blocks run as they were."""
        self._stance = "force_eager"


def _keep_output() -> None:
    """Names the directory, unless the operator has named another one."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Long before anything is compiled, some import has made its default look like a choice.
    default = default_cache_dir()
    if os.environ.get(CACHE_VARIABLE, default) == default:
        os.environ[CACHE_VARIABLE] = str(CACHE_DIR.expanduser())
