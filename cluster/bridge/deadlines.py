"""How long a job may take, by pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from cluster.errors import ConfigError
from deployments.registry import PIPELINES

DEADLINE_S = 540.0
"""Media saved later than 10 minutes after the job began is lost (go-livepeer's storage)."""

MAX_DEADLINE_S = 14 * 60.0
"""After 15 minutes the orchestrator drops the job, and the whole worker with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds from a job's arrival to its result."""

    default_s: float = DEADLINE_S
    by_pipeline_s: Mapping[str, float] = field(default_factory=dict)

    def of(self, pipeline: str) -> float:
        """Seconds for a job of this pipeline."""
        return self.by_pipeline_s.get(pipeline, self.default_s)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `540`, `540,llm=120` or `llm=120,upscale=60`.

        Raises:
            ConfigError: naming the part that makes no sense.
        """
        default_s, by_pipeline_s = DEADLINE_S, {}
        for part in text.split(","):
            pipeline, equals, value = part.strip().rpartition("=")
            if equals and pipeline not in PIPELINES:
                raise ConfigError(
                    f"--deadline-s: no pipeline {pipeline!r}; there are: {', '.join(PIPELINES)}"
                )
            if equals:
                by_pipeline_s[pipeline] = _seconds(value)
            else:
                default_s = _seconds(value)
        return cls(default_s=default_s, by_pipeline_s=by_pipeline_s)

    def __str__(self) -> str:
        parts = [f"{pipeline}={seconds:g}" for pipeline, seconds in self.by_pipeline_s.items()]
        return ",".join([f"{self.default_s:g}", *parts])


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 1 <= seconds <= MAX_DEADLINE_S:
        raise ConfigError(
            f"--deadline-s: want 1 to {MAX_DEADLINE_S:g} seconds, got {value!r}: later answers "
            "cost the worker its registration"
        )
    return seconds
