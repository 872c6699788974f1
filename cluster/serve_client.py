"""Ray and Serve as seen from a driver: the one module that touches Serve's private API.

`deploy` does what `serve deploy` does and `details` returns the same document as Serve's
public REST API (`GET /api/serve/applications/`); both without the dashboard in between, which
may be off or dead while the cluster works. Ray is pinned for it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.serve._private.api import serve_start
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from cluster.ai_models import AIModel, ModelKey
from cluster.errors import ConfigError
from cluster.serve_config import DEPLOYMENT, app_name

FAILED = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model's application, as Serve sees it now."""

    state: str
    """Serve's application status, or NOT_DEPLOYED."""
    message: str = ""
    """Why it failed, when it failed."""
    running: int = 0
    """Replicas that take requests."""
    rebuilding: bool = False
    """The application exists and shows no deployment: for a moment, during a rebuild."""
    nodes: frozenset[str] = field(default_factory=frozenset)
    """Ray node ids of the running replicas."""

    @property
    def failed(self) -> bool:
        """Serve has given up, or a replica is unhealthy."""
        return self.state in FAILED


def connect(address: str) -> None:
    """Connects this process to a running cluster.

    Args:
        address: `auto` for the one on this machine, or `HOST:PORT` of its GCS.

    Raises:
        ConfigError: there is none.
    """
    # Ray authenticates drivers by a token and, where the address is given as HOST:PORT, sends
    # none unless it is told to. With a token on this machine we send it.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ray.init(
            address=address,
            namespace="serve",
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray start --head` or "
            "`ray up`, or let `livepeer-ray start` start a local one"
        ) from error


def start_local() -> None:
    """Starts a cluster of this machine alone, which ends with this process."""
    ray.init(
        address="local",
        namespace="serve",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        configure_logging=False,
    )


def nodes() -> list[dict[str, Any]]:
    """Ray's table of nodes, dead ones included."""
    table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return table


def cluster_gpus() -> float:
    """GPUs of the cluster now, by Ray's count."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0.0)


def deploy(config: Mapping[str, Any]) -> None:
    """Makes the cluster's applications those of the config; returns before they run.

    Applications that are not in it are deleted, unchanged ones go on untouched.
    """
    schema = ServeDeploySchema.model_validate(config)
    client = serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
    )
    client.deploy_apps(schema)


def details() -> dict[str, Any]:
    """Serve's whole state; an empty one when Serve is not running."""
    client = _get_global_client(raise_if_no_controller_running=False)
    document: dict[str, Any] = client.get_serve_details() if client else {"applications": {}}
    return document


def model_status(models: tuple[AIModel, ...]) -> dict[ModelKey, ModelStatus]:
    """The status of each configured model that Serve knows."""
    applications = details()["applications"]
    return {
        model.key: _status(applications[name])
        for model in models
        if (name := app_name(model.key)) in applications
    }


def _status(application: Mapping[str, Any]) -> ModelStatus:
    deployment = application["deployments"].get(DEPLOYMENT)
    if deployment is None:
        return ModelStatus(
            state=_text(application["status"]),
            message=application["message"],
            rebuilding=_text(application["status"]) == "DEPLOYING",
        )
    running = [
        replica for replica in deployment["replicas"] if _text(replica["state"]) == "RUNNING"
    ]
    return ModelStatus(
        state=_text(application["status"]),
        message=deployment["message"] or application["message"],
        running=len(running),
        nodes=frozenset(replica["node_id"] for replica in running),
    )


def _text(state: Any) -> str:
    """Serve's enums, which arrive as members or as their text."""
    return str(getattr(state, "value", state))
