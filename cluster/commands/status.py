"""`livepeer-ray status`: models, nodes and registrations, as they are now."""

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from cluster import ray_cluster, serve_client
from cluster.settings import host_port
from cluster.status import document, table

EVERY_S = 2.0
BRIDGE_TIMEOUT_S = 2.0
MAX_STATE_BYTES = 64 * 1024 * 1024

CLEAR = "\x1b[H\x1b[2J"


def run(*, ray_address: str, bridge: tuple[str, int] | None, as_json: bool, watch: bool) -> int:
    """Prints the state once, or again and again.

    Args:
        ray_address: of the cluster.
        bridge: where a bridge tells its state; None not to ask.
        as_json: one JSON object a time, on a line of its own when watching.
        watch: go on until interrupted.

    Raises:
        ClusterUnreachable: there is no cluster at the address, or it went away.
    """
    ray_cluster.connect(ray_address)
    while True:
        state = None if bridge is None else ask_bridge(bridge)
        with ray_cluster.reachable():
            status = document(
                applications=serve_client.details()["applications"],
                nodes=ray_cluster.nodes(),
                bridge=state,
            )
        if as_json:
            print(json.dumps(status, indent=None if watch else 2), flush=True)
        else:
            clear = CLEAR if watch and sys.stdout.isatty() else ""
            print(f"{clear}{table(status)}", flush=True)
            if state is None:
                print(f"\n{_no_bridge(bridge)}", flush=True)
        if not watch:
            return 0
        time.sleep(EVERY_S)


def ask_bridge(bridge: tuple[str, int]) -> Mapping[str, Any] | None:
    """Returns what a bridge says of itself; None where none does."""
    host, port = bridge
    connection = http.client.HTTPConnection(host, port, timeout=BRIDGE_TIMEOUT_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/state")
            state: Any = json.loads(connection.getresponse().read(MAX_STATE_BYTES))
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            return None
    # Somebody else may listen there.
    ours = isinstance(state, dict) and {"models", "containers", "registrations"} <= state.keys()
    return state if ours else None


def _no_bridge(bridge: tuple[str, int] | None) -> str:
    if bridge is None:
        return "no bridge was asked (--state-listen none)"
    return (
        f"no bridge answers on {host_port(bridge)}: what is in flight, advertised and registered "
        "is not known; run this on the bridge's machine, with its --state-listen"
    )
