"""Which replica of a model gets a request: one that is free, where there is one.

Serve's own router looks at two replicas by chance. Where both are busy it waits, for 25 ms and
then longer, and looks at two others: with most replicas at work, as they should be, a request
misses the free one again and again. This one looks at all, by what it remembers of them, which
costs no message.
"""

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

PROBED = 2
"""Replicas at a time that are asked how many requests they have."""


class FreeReplicaRouter(FIFOMixin, RequestRouter):
    """Sends a request to the replica that has the fewest.

    It remembers what it has sent to each and what came back. What others have sent there, and
    replicas that it knows nothing of, it learns by asking: beside the request, or before it where
    nobody is known to be free.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Returns those from which Serve takes the least loaded one, and asks the unknown ones."""
        free: list[RunningReplica] = []
        unknown: list[RunningReplica] = []
        for replica in candidate_replicas:
            requests = self.replica_queue_len_cache.get(replica.replica_id)
            if requests is None:
                unknown.append(replica)
            elif requests < replica.max_ongoing_requests:
                free.append(replica)
        random.shuffle(free)
        chosen = free + _some(unknown)
        if not chosen and pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [chosen or _some(candidate_replicas)]


def _some(replicas: list[RunningReplica]) -> list[RunningReplica]:
    return random.sample(replicas, min(PROBED, len(replicas)))
