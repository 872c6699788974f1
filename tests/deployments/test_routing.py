"""Which replicas Serve is to choose from, by what its router remembers of them."""

from dataclasses import dataclass
from typing import Any, cast

import pytest
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest, RunningReplica

from deployments.routing import PROBED, FreeReplicaRouter

DEPLOYMENT = DeploymentID(name="model", app_name="app")


@dataclass(frozen=True)
class Replica:
    """The part of Serve's replicas that the choice reads."""

    replica_id: ReplicaID
    max_ongoing_requests: int = 2


REPLICAS = [Replica(ReplicaID(str(number), DEPLOYMENT)) for number in range(64)]


@pytest.fixture
async def router() -> FreeReplicaRouter:
    return FreeReplicaRouter(  # type: ignore[no-untyped-call]
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.UNKNOWN,
        use_replica_queue_len_cache=True,
    )


def request_() -> PendingRequest:
    metadata = RequestMetadata(request_id="1", internal_request_id="1")
    return PendingRequest(args=[], kwargs={}, metadata=metadata)


async def choice(router: FreeReplicaRouter, request: PendingRequest) -> set[Any]:
    (chosen,) = await router.choose_replicas(cast("list[RunningReplica]", REPLICAS), request)
    return set(chosen)


def remember(router: FreeReplicaRouter, requests: int, *replicas: Replica) -> None:
    for replica in replicas:
        router.replica_queue_len_cache.update(replica.replica_id, requests)


async def test_the_one_that_is_free_is_found(router: FreeReplicaRouter) -> None:
    request = request_()
    remember(router, 2, *REPLICAS)
    remember(router, 1, REPLICAS[40])
    assert await choice(router, request) == {REPLICAS[40]}
    assert not request.routing_context.should_backoff


async def test_few_of_the_unknown_are_asked(router: FreeReplicaRouter) -> None:
    assert len(await choice(router, request_())) == PROBED
    remember(router, 0, *REPLICAS[:3])
    chosen = await choice(router, request_())
    assert chosen > set(REPLICAS[:3])
    assert len(chosen) == 3 + PROBED


async def test_where_none_is_free_some_are_asked_after_a_pause(router: FreeReplicaRouter) -> None:
    request = request_()
    remember(router, 2, *REPLICAS)
    assert len(await choice(router, request)) == PROBED
    assert request.routing_context.should_backoff
