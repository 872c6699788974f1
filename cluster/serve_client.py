"""Ray and Serve as seen from a driver: the one module that touches Serve's private API.

`deploy` does what `serve deploy` does and `details` returns the same document as Serve's
public REST API (`GET /api/serve/applications/`); both without the dashboard in between, which
may be off or dead while the cluster works. Ray is pinned for it.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.services import canonicalize_bootstrap_address
from ray._private.state import state
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.context import _disconnect, _get_global_client
from ray.serve.schema import ServeDeploySchema
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ai_models import AIModel, ModelKey
from cluster.capacity import ModelStatus
from cluster.cold import Scaling, room_beside_the_warm
from cluster.errors import ClusterUnreachable, ConfigError
from cluster.http_api import HTTPSettings, is_taken
from cluster.placement import Room
from cluster.serve_config import app_name
from cluster.settings import host_port, without_secrets
from deployments.model_args import DEPLOYMENT
from deployments.replica_states import AT_WORK

logger = logging.getLogger(__name__)

LISTENING_TIMEOUT_S = 5.0
"""For the cluster's GCS to accept a connection."""

REMEDY = (
    "start one with `ray start --head` or `ray up`, or let `livepeer-ray start` start a local one"
)

CONTROLLER_TIMEOUT_S = 10.0
"""For Serve's controller to tell its state, which takes milliseconds."""


def connect(address: str) -> None:
    """Connects this process to a running cluster.

    Args:
        address: as for `gcs_address`.

    Raises:
        ConfigError: it is no address.
        ClusterUnreachable: there is none, or it does not let us in.
    """
    _connect(gcs_address(address))


def gcs_address(address: str) -> str:
    """Returns `HOST:PORT` of the GCS of a running cluster.

    Ray itself needs two minutes to say that nobody listens there.

    Args:
        address: `auto` for the cluster of this machine, or `HOST:PORT`.

    Raises:
        ConfigError: it is no address.
        ClusterUnreachable: there is no cluster.
    """
    try:
        known = canonicalize_bootstrap_address("auto") if address == "auto" else address
    except (OSError, ValueError):
        # Not Ray's own words, which advise other flags. It lets a variable win over `auto`.
        variable = os.environ.get("RAY_ADDRESS")
        where = f"at RAY_ADDRESS, {variable!r}" if variable else "on this machine"
        raise ClusterUnreachable(
            f"no Ray cluster {where}; {REMEDY}, or name another one by --ray-address"
        ) from None
    host, _, port = (known or "").rpartition(":")
    if known is None or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--ray-address: want auto or HOST:PORT, got {known or address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LISTENING_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        raise ClusterUnreachable(f"no Ray cluster at {known!r} ({error}); {REMEDY}") from error
    return known


def not_let_in(address: str, error: Exception) -> ClusterUnreachable:
    """What a cluster's silence means where somebody listens."""
    return ClusterUnreachable(
        f"the Ray cluster at {address!r} does not let us in ({error}); ~/.ray/auth_token has to "
        "be the token that its machines have"
    )


def _connect(address: str) -> None:
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
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise not_let_in(address, error) from error


def start_local() -> None:
    """Starts a cluster of this machine alone, which ends with this process."""
    # Ray runs its workers at nice 15, so that whatever else the machine does starves the
    # replicas: at 8 jobs at once an answer took 1.2 to 2.2 times as long (benchmarks/overhead).
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Serve kills a proxy that takes longer to start, and with it whoever deploys: on two cores that
    # were loading models it took over 15 s.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    # It hands our environment on to every replica.
    for name in os.environ.keys() - without_secrets().keys():
        del os.environ[name]
    ray.init(
        address="local",
        namespace="serve",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        configure_logging=False,
    )


def join(address: str) -> bool:
    """Connects to the cluster or starts a local one; returns whether it is a local one.

    Args:
        address: as for `gcs_address`, where `auto` starts one if there is none; or `local`.

    Raises:
        ConfigError: it is no address.
        ClusterUnreachable: there is no cluster at an address that was given, or it does not let
            us in. One of our own beside it would take its GPUs a second time.
    """
    try:
        known = None if address == "local" else gcs_address(address)
    except ClusterUnreachable:
        if address != "auto":
            raise
        known = None
    if known is None:
        start_local()
        return True
    _connect(known)
    return False


@contextmanager
def reachable() -> Iterator[None]:
    """For commands that cannot wait for a cluster to come back.

    Raises:
        ClusterUnreachable: in place of what Ray raises.
    """
    try:
        yield
    except RayError as error:
        raise ClusterUnreachable(
            f"the Ray cluster does not answer ({type(error).__name__}); it may be restarting"
        ) from error


def node_resources() -> list[dict[str, float]]:
    """Ray's resources of each machine that takes work: is alive, and not being drained."""
    return [node["Resources"] for node in nodes() if not node["Draining"]]


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
        raise ConfigError("Serve runs without HTTP, and would have to be shut down to change that")
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


def nodes() -> list[dict[str, Any]]:
    """The machines that are alive as Ray's table has them, and whether each is `Draining`."""
    draining = state.get_draining_nodes()
    return [{**node, "Draining": node["NodeID"] in draining} for node in _nodes() if node["Alive"]]


def on_every_node(
    work: Callable[..., Any], *arguments: Any, **named: Any
) -> Iterator[tuple[str, Any]]:
    """Runs a function once on each machine of the cluster, at the same time on all.

    Yields:
        The machine's address and what the function returned there, in the order in which they
        finish; the exception where it did not.
    """
    task = ray.remote(num_cpus=0)(work)
    running = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ).remote(*arguments, **named): node
        for node in nodes()
        # Ray places nothing on one that is drained.
        if not node["Draining"]
    }
    while running:
        (done,), _ = ray.wait(list(running))
        address = str(running.pop(done)["NodeManagerAddress"])
        try:
            yield address, ray.get(done)
        except RayError as error:
            yield address, error


def _nodes() -> list[dict[str, Any]]:
    """Ray's table of nodes, dead ones included."""
    table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return table


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
