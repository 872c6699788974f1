"""The Ray cluster as a driver sees it: joining one or starting it, its machines, work on each."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.services import canonicalize_bootstrap_address
from ray._private.state import state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ClusterUnreachable, ConfigError
from cluster.settings import without_secrets

LISTENING_TIMEOUT_S = 5.0
"""For the cluster's GCS to accept a connection."""

REMEDY = (
    "start one with `ray start --head` or `ray up`, or let `livepeer-ray start` start a local one"
)


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


def nodes() -> list[dict[str, Any]]:
    """The machines that are alive as Ray's table has them, and whether each is `Draining`."""
    draining = state.get_draining_nodes()
    return [{**node, "Draining": node["NodeID"] in draining} for node in _nodes() if node["Alive"]]


def node_resources() -> list[dict[str, float]]:
    """Ray's resources of each machine that takes work: is alive, and not being drained."""
    return [node["Resources"] for node in nodes() if not node["Draining"]]


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
