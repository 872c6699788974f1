"""What the ingress is told: its `user_config` in the Serve config.

Serve hands a changed one to the running ingress, which goes on with its requests meanwhile.
Stands alone so that whoever renders a Serve config imports neither Ray nor FastAPI.
"""

import hashlib
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

RUNNER_VERSION = "0.14.1"
"""The ai-runner whose API this is; gateways can ask for a newest one that is not older."""

APP = "http-api"
"""The ingress' application."""

IMPORT_PATH = "deployments.ingress.deployment:build"

DEPLOYMENT = "ingress"
"""The name of its one deployment."""


class ModelKey(NamedTuple):
    """A model of a pipeline."""

    pipeline: str
    model_id: str

    def __str__(self) -> str:
        return f"{self.pipeline} {self.model_id}"


class ServedModel(BaseModel):
    """One model and the application that serves it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    pipeline: str
    model_id: str
    app: str
    slots: int = Field(ge=1)
    """Requests at once, of each replica."""
    cold: bool
    """It may have no replica until the first request."""

    @property
    def key(self) -> ModelKey:
        """What requests name it by."""
        return ModelKey(self.pipeline, self.model_id)


class Token(BaseModel):
    """Who may ask for what. The token itself is not here: configs are shown and logged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    models: tuple[str, ...] = ()
    """`pipeline/model_id` of those that it is good for; empty for all."""

    @classmethod
    def of(cls, token: str, *, models: tuple[str, ...] = ()) -> "Token":
        """Returns what to keep of a token."""
        return cls(sha256=hashlib.sha256(token.encode()).hexdigest(), models=models)


class IngressConfig(BaseModel):
    """All of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ServedModel, ...] = ()
    tokens: tuple[Token, ...] = ()
    """Empty: everybody on this machine may ask, and nobody else."""
