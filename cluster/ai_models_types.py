"""What the rest of the project knows of an aiModels.json: models, their flags and Ray options."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

MAX_CAPACITY = 10_000
"""Far above any real cluster: a slip of the finger must not ask Ray for a million replicas."""


class ModelKey(NamedTuple):
    """What a job asks for and capacity is counted by."""

    pipeline: str
    model_id: str

    def __str__(self) -> str:
        """As people read it, `text-to-image org/name`."""
        return f"{self.pipeline} {self.model_id}"


def word(value: str) -> str:
    """A name that can stand in a message, a table or a header without breaking it."""
    if not value:
        raise ValueError("must not be empty")
    if not value.isprintable() or " " in value:
        raise ValueError("must not contain blanks or control characters")
    return value


def _gpu_count(value: float) -> float:
    """Ray's rule for resources: GPUs are shared in parts or taken whole."""
    if value < 0 or (value > 1 and not value.is_integer()):
        raise ValueError("must be 0 (on the CPU), a fraction of one GPU, or a whole number")
    return value


class LiveRunnerPrice(BaseModel):
    """What a model costs where it is a live runner on-chain (go-livepeer, LiveRunnerPriceInfo)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    price: float = Field(gt=0, allow_inf_nan=False)
    currency: Literal["usd"] = "usd"
    unit: Literal["hour", "720p", "fixed"] = "hour"
    """A `fixed` price is paid once a request."""


class RayOptions(BaseModel):
    """The optional `ray` object of an entry: what Ray may do for this model."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    num_gpus: Annotated[float, AfterValidator(_gpu_count)] = 1.0
    """GPUs of each replica; 0 runs it on the CPU."""
    max_replicas: int | None = Field(default=None, ge=1, le=MAX_CAPACITY)
    """How far load may add replicas; None: on GPUs, as far as there are any."""
    max_ongoing_requests: int = Field(default=1, ge=1, le=MAX_CAPACITY)
    """Requests that one replica works on at a time; an entry without has its pipeline's number."""
    accelerator_type: Annotated[str, AfterValidator(word)] | None = None
    """Ray's name of a GPU model, such as A100, to which replicas are bound."""
    engine: Annotated[str, AfterValidator(word)] | None = None
    """What runs the model instead of its pipeline's own replica (`deployments.registry`)."""
    live_runner_price: LiveRunnerPrice | None = None
    """None where orchestrators are off-chain, or the worker is no live runner."""


@dataclass(frozen=True, kw_only=True)
class OptimizationFlags:
    """Which of ai-runner's optimizations a replica switches on; never both."""

    sfast: bool = False
    deepcache: bool = False


@dataclass(frozen=True, kw_only=True)
class AIModel:
    """A model to serve, on Ray or, with a `url`, by a container that runs elsewhere."""

    pipeline: str
    model_id: str
    warm: bool = False
    capacity: int = 1
    """Replicas on Ray; jobs at a time for a `url`."""
    url: str | None = None
    """Base address without a final slash."""
    token: SecretStr | None = None
    flags: OptimizationFlags = OptimizationFlags()
    ray: RayOptions = field(default_factory=RayOptions)
    entry: int = field(default=0, compare=False)
    """Number of its first entry in the file, for messages; a model that moves is the same."""

    @property
    def key(self) -> ModelKey:
        """Pipeline and model id."""
        return ModelKey(self.pipeline, self.model_id)
