"""LoRAs of a request: adapters that are loaded once, kept, and mixed with the request's weights.

They come from the models directory like models do. Limits and the weights' meaning are
ai-runner's (runner/src/runner/pipelines/utils/utils.py, LoraLoader).
"""

import itertools
import json
import logging
import math
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployments.errors import BadRequest, ModelNotFound
from deployments.loading import find_snapshot

logger = logging.getLogger("ray.serve")

MAX_PER_REQUEST = 4
"""Each active LoRA adds its own matrix products to every step."""

MAX_LOADED = 12
"""Kept in the GPU's memory, usually 20 to 400 MB each; the least recently used goes first, and all
that are idle go when memory runs out."""

USUAL_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls the weights; other repositories have one file of any name."""


class Loras:
    """The adapters of one pipeline. Used in the model thread only.

    Args:
        pipe: a diffusers pipeline.
        models_dir: where LoRAs are, in the Hugging Face cache layout.
    """

    def __init__(self, *, pipe: Any, models_dir: Path) -> None:
        self._pipe = pipe
        self._models_dir = models_dir
        self._names: OrderedDict[str, str] = OrderedDict()
        """Adapter names by LoRA id, the most recently used last."""
        self._wanted: Collection[str] = ()
        """LoRA ids of the last request."""
        self._numbers = itertools.count()
        self._active = False

    def apply(self, loras: str) -> None:
        """Makes exactly these LoRAs act on the next inference.

        Args:
            loras: a JSON object, LoRA id to weight; empty for none.

        Raises:
            BadRequest: names the LoRA that is malformed, unknown here or made for another model.
        """
        weights = parse_loras(loras)
        self._wanted = weights.keys()
        if not weights:
            if self._active:
                self._pipe.disable_lora()
                self._active = False
            return
        if not hasattr(self._pipe, "load_lora_weights"):
            raise BadRequest("loras: this model takes none")
        # Loading one activates it: set before, so that the next request switches it off again
        # even if this one fails.
        self._active = True
        names = [self._load(lora) for lora in weights]
        self._pipe.enable_lora()
        self._pipe.set_adapters(names, list(weights.values()))
        for lora in list(self._names)[: max(0, len(self._names) - MAX_LOADED)]:
            self._unload(lora)

    def unload_idle(self) -> None:
        """Frees the memory of all that the last request did not ask for."""
        for lora in self._names.keys() - self._wanted:
            self._unload(lora)

    def _load(self, lora: str) -> str:
        """Returns the adapter's name in the pipeline, loading it if needed."""
        import torch

        if lora in self._names:
            self._names.move_to_end(lora)
            return self._names[lora]
        try:
            snapshot = find_snapshot(lora, self._models_dir)
        except ModelNotFound as error:
            # The answer names no directory of ours; the log does.
            logger.warning("a request asked for a LoRA that is not here: %s", error)
            raise BadRequest(f"loras: {lora} is not available here") from None
        files = sorted(snapshot.glob("*.safetensors"))
        if not files:
            raise BadRequest(f"loras: {lora} has no .safetensors file")
        file = snapshot / USUAL_FILE if snapshot / USUAL_FILE in files else files[0]
        # Never a name twice: diffusers keeps some traces of deleted adapters.
        name = f"lora_{next(self._numbers)}"
        self._names[lora] = name
        try:
            with _several_adapters_expected():
                self._pipe.load_lora_weights(
                    file, adapter_name=name, use_safetensors=True, local_files_only=True
                )
            # Weights whose layers are all unknown only make diffusers log a line.
            fits = any(name in names for names in self._pipe.get_list_adapters().values())
        except torch.OutOfMemoryError:
            self._unload(lora)
            raise
        except Exception:
            logger.exception("LoRA %s does not load", lora)
            self._unload(lora)
            raise BadRequest(f"loras: {lora} does not load into this model") from None
        if not fits or self._altered:
            self._unload(lora)
            raise BadRequest(f"loras: {lora} is made for another kind of model")
        return name

    def _unload(self, lora: str) -> None:
        name = self._names.pop(lora)
        if self._altered:
            # There is a way back, but not for one of them alone.
            self._pipe.unload_lora_weights(reset_to_overwritten_params=True)
            self._pipe.transformer._overwritten_params = None
            self._names.clear()
            return
        with _several_adapters_expected():
            self._pipe.delete_adapters(name)

    @property
    def _altered(self) -> bool:
        """Whether one did more to the model than to add to it, as Flux's control LoRAs do.

        diffusers widens and replaces layers for them, which no later request could do without.
        """
        transformer = getattr(self._pipe, "transformer", None)
        kept = ("_overwritten_params", "_transformer_norm_layers")
        return any(getattr(transformer, name, None) for name in kept)


@contextmanager
def _several_adapters_expected() -> Iterator[None]:
    """Keeps PEFT from warning of what is meant to happen here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
        yield


def parse_loras(loras: str) -> dict[str, float]:
    """Returns the weights by LoRA id.

    Raises:
        BadRequest: it is not a JSON object of at most `MAX_PER_REQUEST` weights of 0 or more.
    """
    if not loras.strip():
        return {}
    try:
        decoded = json.loads(loras)
    except (ValueError, RecursionError):
        raise BadRequest(f"loras: not JSON: {loras[:100]}") from None
    if not isinstance(decoded, dict):
        raise BadRequest('loras: must be a JSON object such as {"organisation/name": 0.8}')
    if len(decoded) > MAX_PER_REQUEST:
        raise BadRequest(f"loras: at most {MAX_PER_REQUEST}, not {len(decoded)}")
    return {lora: _weight(lora, value) for lora, value in decoded.items()}


def _weight(lora: str, value: Any) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise BadRequest(f"loras: the weight of {lora} must be a number of 0 or more")
    return weight
