"""Taking a machine out of the cluster without losing a job.

Order, and why:

1. Ray marks the node as draining: from then on it places nothing there, and the bridge and the
   deployer do not count it any more.
2. Serve's controller, which looks every moment, takes the node's replicas out of the handles'
   sight, so that no job is sent there, and starts others elsewhere. The bridge, which counts
   RUNNING replicas only, registers with what is left.
3. The replicas finish what they have, and end. Their results have left the machine by then; the
   bridge, on the head, delivers them.
4. A draining node on which nothing runs ends its Ray by itself. That is what is waited for: the
   machine can be switched off, and nothing is left to be done on it.

This talks to Ray's GCS and is no driver of the cluster: on the machine that is drained a driver
would keep the node busy and be killed with it. There is no way back but starting Ray there anew.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.exceptions import RayError

from cluster.errors import ClusterUnreachable, ConfigError
from cluster.ray_cluster import gcs_address, not_let_in

RPC_TIMEOUT_S = 10.0

# What protobuf makes at import has no types.
PREEMPTION = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]
"""The other reason that Ray has, idleness, is turned down by a node that works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster."""

    id: str
    address: str
    hostname: str
    head: bool = False

    def __str__(self) -> str:
        return f"{self.hostname} ({self.address}, {self.id[:8]}{', the head' if self.head else ''})"


def choose(nodes: Sequence[Node], text: str) -> Node:
    """Returns the node that an operator names.

    Args:
        nodes: those that are alive.
        text: address, host name, or the beginning of a node id.

    Raises:
        ConfigError: it is no node, several, or the head; with the nodes that there are.
    """
    found = [
        node
        for node in nodes
        if text in (node.address, node.hostname) or (text and node.id.startswith(text.lower()))
    ]
    if len(found) != 1:
        listed = "".join(f"\n  {node}" for node in (found or nodes))
        many = "names several nodes; say the id of one:" if found else "is no node. There are:"
        raise ConfigError(f"{text!r} {many}{listed}")
    (node,) = found
    if node.head:
        raise ConfigError(
            f"{node}: without it there is no cluster; stop the worker instead, which finishes "
            "and answers its jobs: `systemctl --user stop livepeer-ray`"
        )
    return node


class Gcs:
    """The part of Ray's GCS that a drain needs."""

    def __init__(self, address: str) -> None:
        """Connects.

        Args:
            address: as for `ray_cluster.gcs_address`.

        Raises:
            ConfigError: it is no address.
            ClusterUnreachable: there is none, or it does not let us in.
        """
        known = gcs_address(address)
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        try:
            self._client: Any = GcsClient(address=known)
        except (ConnectionError, RayError) as error:
            raise not_let_in(known, error) from error

    def nodes(self) -> list[Node]:
        """Those that are alive.

        Raises:
            ClusterUnreachable: the GCS does not answer.
        """
        try:
            table = self._client.get_all_node_info(timeout=RPC_TIMEOUT_S)
        except RayError as error:
            raise ClusterUnreachable(
                f"the Ray cluster does not answer ({type(error).__name__}); it may be restarting"
            ) from error
        alive = gcs_pb2.GcsNodeInfo.ALIVE  # type: ignore[attr-defined]
        return [
            Node(
                id=node_id.hex(),
                address=node.node_manager_address,
                hostname=node.node_manager_hostname,
                head=node.is_head_node,
            )
            for node_id, node in table.items()
            if node.state == alive
        ]

    def drain(self, node: Node) -> None:
        """Marks a node as draining; again where it is already.

        Raises:
            ClusterUnreachable: Ray does not do it.
        """
        # Serve gives a replica until its node's deadline, less the time that it takes for its
        # jobs (deployments.app: 600 s), to find a successor, and sends it jobs until then. A
        # deadline that has come ends that at once, whosever clock is off; to Ray it is a note.
        deadline_unix_ms = int(time.time() * 1000)
        try:
            accepted, why = self._client.drain_node(
                node.id, PREEMPTION, "livepeer-ray drain", deadline_unix_ms, timeout=RPC_TIMEOUT_S
            )
        except RayError as error:
            raise ClusterUnreachable(f"{node} cannot be drained: {error}") from error
        if not accepted:
            raise ClusterUnreachable(f"{node} cannot be drained: {why}")
