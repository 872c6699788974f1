"""Serve as seen from a driver: the one module that touches its private API.

`deploy` does what `serve deploy` does and `details` returns the same document as Serve's
public REST API (`GET /api/serve/applications/`); both without the dashboard in between, which
may be off or dead while the cluster works. Ray is pinned for it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.context import _disconnect, _get_global_client
from ray.serve.schema import ServeDeploySchema

from cluster.ai_models import AIModel, ModelKey
from cluster.capacity import ModelStatus
from cluster.cold import Scaling, room_beside_the_warm
from cluster.errors import ConfigError
from cluster.http_api import HTTPSettings, is_taken
from cluster.placement import Room
from cluster.ray_cluster import node_resources, nodes
from cluster.serve_config import app_name
from cluster.settings import host_port
from deployments.model_args import DEPLOYMENT
from deployments.replica_states import AT_WORK

logger = logging.getLogger(__name__)

CONTROLLER_TIMEOUT_S = 10.0
"""For Serve's controller to tell its state, which takes milliseconds."""


def deploy(config: Mapping[str, Any]) -> None:
    """Makes the cluster's applications those of the config; returns before they run.

    Applications that are not in it are deleted, unchanged ones go on untouched.
    """
    schema = ServeDeploySchema.model_validate(config)
    client = serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
        controller_options=schema.controller_options,
    )
    names = {application.name for application in schema.applications}
    for name in sorted(details()["applications"].keys() - names):
        logger.warning("removing the application %s", name)
    client.deploy_apps(schema)


def check_http(http: HTTPSettings) -> None:
    """Says so where Serve's proxies will not listen as they should. To be asked before `deploy`.

    They are started with Serve: a Serve that runs goes on with those that it has.

    Raises:
        ConfigError: they will not listen at all.
    """
    there = details()
    if "proxy_location" not in there:
        if _on_the_head() and is_taken(http.host, http.port):
            raise ConfigError(
                f"--http {host_port((http.host, http.port))}: somebody else listens there"
            )
        return
    if _text(there["proxy_location"]) == "Disabled":
        raise ConfigError(
            "Serve runs without HTTP, as `bench` starts it; to change that end it, and every "
            "model with it: `serve shutdown`"
        )
    # What nobody has set is left out.
    options = HTTPOptions.model_validate(there.get("http_options", {}))
    if (options.host, options.port) != (http.host, http.port):
        logger.warning(
            "Serve's HTTP listens on %s, and will until it is shut down",
            host_port((str(options.host), options.port)),
        )


def _on_the_head() -> bool:
    """Whether this process is on the machine where Serve's proxy will be."""
    here = ray.get_runtime_context().get_node_id()
    return any(
        node["NodeID"] == here and "node:__internal_head__" in node["Resources"] for node in nodes()
    )


def details() -> dict[str, Any]:
    """Serve's whole state; an empty one when Serve is not running.

    Raises:
        RayError: the controller does not answer; the next call looks for it anew.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {"applications": {}}
    asked = client._controller.get_serve_instance_details.remote()
    try:
        document: dict[str, Any] = ray.get(asked, timeout=CONTROLLER_TIMEOUT_S)
    except RayError:
        # Serve keeps a handle to a controller that is gone for good.
        _disconnect()  # type: ignore[no-untyped-call]
        raise
    return document


def model_status(models: Sequence[AIModel]) -> dict[ModelKey, ModelStatus]:
    """The status of each configured model that Serve knows."""
    applications = details()["applications"]
    # Who has no cold model need not know what is left for one.
    cold = any(not model.warm for model in models)
    room = room_beside_the_warm(applications, node_resources()) if cold else Room(None)
    return {
        model.key: application_status(applications[name], room=room)
        for model in models
        if (name := app_name(model.key)) in applications
    }


def application_status(application: Mapping[str, Any], *, room: Room) -> ModelStatus:
    """One application out of Serve's document.

    Replicas count that are RUNNING, or `PENDING_MIGRATION`: those work on until another runs in
    their place, or until their node's end is nearer than the longest job takes, when Serve has
    them finish what they have. One that is RECOVERING belongs to a controller that was restarted
    and has not looked at it yet: Serve itself keeps to what it knew until it has.

    Args:
        application: out of the details.
        room: what is left for cold models.
    """
    deployment = application["deployments"].get(DEPLOYMENT)
    if deployment is None:
        return ModelStatus(
            state=_text(application["status"]),
            message=_reason(application["message"]),
            rebuilding=_text(application["status"]) == "DEPLOYING",
        )
    states = [_text(replica["state"]) for replica in deployment["replicas"]]
    running = [
        replica
        for state, replica in zip(states, deployment["replicas"], strict=True)
        if state in AT_WORK
    ]
    return ModelStatus(
        state=_text(application["status"]),
        message=_reason(deployment["message"] or application["message"]),
        running=len(running),
        rebuilding="RECOVERING" in states,
        replicas=frozenset((replica["actor_name"], replica["node_id"]) for replica in running),
        scaling=Scaling.read(deployment, running=len(running), room=room),
    )


def _reason(message: str) -> str:
    """What is wrong, out of Serve's message, which is a whole remote traceback.

    Its last line is the exception; those of `deployments.errors` are one line, for operators.
    """
    lines = message.strip().splitlines()
    return lines[-1].removeprefix("deployments.errors.") if lines else ""


def _text(state: Any) -> str:
    """Serve's enums, which arrive as members or as their text."""
    return str(getattr(state, "value", state))
