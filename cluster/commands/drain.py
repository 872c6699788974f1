"""`livepeer-ray drain`: a machine leaves the cluster when its jobs are done."""

import contextlib
import sys
import time

from cluster.drain import Gcs, choose
from cluster.errors import ClusterUnreachable

LOOK_S = 0.5
EXIT_STILL_BUSY = 1


def run(node: str, *, ray_address: str, timeout_s: float) -> int:
    """Drains a node and waits until it has left.

    Args:
        node: its address, host name, or the beginning of its id.
        ray_address: of the cluster.
        timeout_s: for its jobs. Whatever happens then, it stays drained.

    Returns:
        0 when the machine can be switched off, 1 when it still has jobs.

    Raises:
        ConfigError: there is no such node, or it is the head.
        ClusterUnreachable: there is no cluster, or it does not do it.
    """
    gcs = Gcs(ray_address)
    drained = choose(gcs.nodes(), node)
    gcs.drain(drained)
    ends_at = time.monotonic() + timeout_s
    print(f"draining {drained}: it takes no new jobs, and finishes those that it has", flush=True)
    while time.monotonic() < ends_at:
        # The GCS may be restarting, and a drain is not a matter of seconds.
        with contextlib.suppress(ClusterUnreachable):
            if all(other.id != drained.id for other in gcs.nodes()):
                print(f"{drained} has left the cluster and can be switched off")
                return 0
        time.sleep(LOOK_S)
    print(
        f"{drained} still works after {timeout_s:g} s. It takes no new jobs; if it is switched "
        "off now, its jobs begin anew on other machines",
        file=sys.stderr,
    )
    return EXIT_STILL_BUSY
