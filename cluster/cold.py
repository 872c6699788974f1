"""What a cold model could run now: it is advertised only where a card is free or can be freed.

cluster/scaling.py gives the cards; here, in the bridge, is told beforehand whether it would. An
autoscaled model gives up what it does not need, so only those at work stand in the way.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.ai_models import AIModel, ModelKey, RayOptions
from cluster.placement import Room
from cluster.scaling import LOOK_BACK_S
from cluster.supply import known_most, supply

TURN_S = 60.0
"""How long an idle card is one cold model's, for registrations that must not offer it twice: long
enough for a client that found the model to come with its request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """An autoscaled model's bounds and what it holds, as Serve knows them."""

    min_replicas: int
    max_replicas: int
    running: int
    held: int
    """Replicas in whatever state, and those that are still to come."""
    needs: RayOptions
    """The GPUs of each; none where the models run on CPUs, whatever the file says."""
    room: Room = field(compare=False)
    """What the warm replicas of all models leave over."""

    @property
    def beyond(self) -> int:
        """How many of the held ones are no warm ones, and have their cards from the room."""
        return max(self.held - self.min_replicas, 0)

    @classmethod
    def read(cls, deployment: Mapping[str, Any], *, running: int, room: Room) -> "Scaling | None":
        """Reads a deployment of Serve's details; None for one of a fixed size."""
        config = _autoscaling(deployment)
        if config is None:
            return None
        return cls(
            min_replicas=config["min_replicas"],
            max_replicas=config["max_replicas"],
            running=running,
            held=max(deployment["target_num_replicas"], len(deployment["replicas"])),
            needs=_needs(deployment),
            room=room,
        )


def room_beside_the_warm(
    applications: Mapping[str, Any], machines: Iterable[Mapping[str, float]]
) -> Room:
    """What the warm replicas of all models leave over.

    Args:
        applications: of Serve's details.
        machines: Ray's resources of each that is alive.
    """
    deployments = [
        deployment
        for application in applications.values()
        for deployment in application["deployments"].values()
    ]
    settings = {
        config["policy"]["policy_kwargs"].get("autoscaler_gpus")
        for deployment in deployments
        if (config := _autoscaling(deployment))
    }
    most = known_most(next(filter(None, settings), None))
    room = Room.of(supply(machines, most))
    for deployment in deployments:
        config = _autoscaling(deployment)
        warm = config["min_replicas"] if config else deployment["target_num_replicas"]
        room.take_up_to(_needs(deployment), warm)
    return room


def _needs(deployment: Mapping[str, Any]) -> RayOptions:
    actor = deployment["deployment_config"]["ray_actor_options"]
    return RayOptions(
        num_gpus=actor.get("num_gpus", 0), accelerator_type=actor.get("accelerator_type")
    )


def _autoscaling(deployment: Mapping[str, Any]) -> Mapping[str, Any] | None:
    config = deployment["deployment_config"].get("autoscaling_config")
    return config if isinstance(config, Mapping) else None


def cold_replicas(model: AIModel, scaling: Scaling, at_work: Iterable[Scaling]) -> int:
    """How many replicas of a cold model there could be, its own `capacity` at most.

    Its running ones are among them, unless a model at work waits for a card: then this one
    takes no more jobs, gets idle and gives way, and no job waits for ever.

    Args:
        model: the cold model.
        scaling: its own.
        at_work: those of the other models that have jobs.
    """
    room = scaling.room.copy()
    waited_for = False
    for theirs in at_work:
        room.take_up_to(theirs.needs, theirs.beyond)
        waited_for |= theirs.beyond > 0 and theirs.running < theirs.held
    wanted = min(max(model.capacity, scaling.running), scaling.max_replicas)
    possible = room.take_up_to(scaling.needs, wanted)
    return possible if waited_for else max(possible, scaling.running)


def replicas_together(
    scaled: Mapping[ModelKey, Scaling],
    replicas: Mapping[ModelKey, int],
    at_work: Collection[ModelKey],
    *,
    turn: int,
) -> dict[ModelKey, int]:
    """How many replicas of each model there can be while all others have theirs.

    Cards that are in use are whose they are. An idle one is offered to those who could have it
    one after the other, so that none of them is left out for ever.

    Args:
        scaled: the autoscaled models.
        replicas: how many each could have if the others are not asked.
        at_work: the models that have jobs.
        turn: who is first; counted up.
    """
    if not scaled:
        return {}
    room = next(iter(scaled.values())).room.copy()
    # The warm ones have cards of their own, which are not in the room.
    granted = {key: min(replicas[key], theirs.min_replicas) for key, theirs in scaled.items()}

    def grant(key: ModelKey, most: int) -> None:
        missing = min(replicas[key], most) - granted[key]
        granted[key] += room.take_up_to(scaled[key].needs, missing)

    for key, theirs in scaled.items():
        if key in at_work or theirs.min_replicas:
            grant(key, theirs.held)
    first = turn % len(scaled)
    for key in [*scaled][first:] + [*scaled][:first]:
        grant(key, replicas[key])
    return granted


class Activity:
    """Which models are at work: those with a job in flight, or without one for a moment only."""

    def __init__(self, in_flight: Callable[[], Mapping[ModelKey, int]]) -> None:
        """Takes who counts the jobs of each model."""
        self._in_flight = in_flight
        self._until_s: dict[ModelKey, float] = {}

    def at_work(self, now_s: float) -> set[ModelKey]:
        """The models at work now.

        A model counts as idle as late as its policy sees it so, and what may take its card is
        not advertised anew after each of its jobs.
        """
        busy = {key for key, jobs in self._in_flight().items() if jobs}
        self._until_s |= dict.fromkeys(busy, now_s + LOOK_BACK_S)
        return {key for key, until_s in self._until_s.items() if now_s < until_s}
