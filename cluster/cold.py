"""What a cold model could run now: it is advertised only where a card is free or can be freed.

cluster/scaling.py gives the cards; here, in the bridge, is told beforehand whether it would. An
autoscaled model gives up what it does not need, so only those at work stand in the way.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.ai_models import AIModel, ModelKey
from cluster.placement import Room
from cluster.scaling import LOOK_BACK_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """An autoscaled model's bounds and what it holds, as Serve knows them."""

    min_replicas: int
    max_replicas: int
    running: int
    held: int
    """Replicas in whatever state, and those that are still to come."""
    room: Room = field(compare=False)
    """What the warm replicas of all models leave over."""

    @classmethod
    def read(cls, deployment: Mapping[str, Any], *, running: int) -> "Scaling | None":
        """Reads a deployment of Serve's details; None for one of a fixed size."""
        config = deployment["deployment_config"].get("autoscaling_config")
        if not isinstance(config, Mapping):
            return None
        # A deployment that somebody else configured has no room of ours.
        room = config["policy"]["policy_kwargs"].get("room")
        return cls(
            min_replicas=config["min_replicas"],
            max_replicas=config["max_replicas"],
            running=running,
            held=max(deployment["target_num_replicas"], len(deployment["replicas"])),
            room=Room(room),
        )


def cold_replicas(
    model: AIModel, scaling: Scaling, at_work: Iterable[tuple[AIModel, Scaling]]
) -> int:
    """How many replicas of a cold model there could be, its own `capacity` at most.

    Its running ones are among them, unless a model at work waits for a card: then this one
    takes no more jobs, gets idle and gives way, and no job waits for ever.

    Args:
        model: the cold model.
        scaling: its own.
        at_work: the other models that have jobs.
    """
    room = scaling.room.copy()
    waited_for = False
    for other, theirs in at_work:
        room.take_up_to(other.ray, theirs.held - theirs.min_replicas)
        waited_for |= theirs.running < theirs.held
    wanted = min(max(model.capacity, scaling.running), scaling.max_replicas)
    possible = room.take_up_to(model.ray, wanted)
    return possible if waited_for else max(possible, scaling.running)


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
