"""How many replicas a model has between its bounds: the autoscaling policy that Serve runs.

Serve's controller makes one `Scaler` per model on GPUs and asks it ten times a second. All of
them live in that one process, so that they know of each other and share the cluster's cards:
never do they ask for more than fits, and who holds a card that it does not need gives it up as
soon as a model without one has a job waiting. Which machines there are, they ask Ray.

Here, and not in the bridge, because the controller sees the requests of every handle, whoever
holds it, and outlives the bridge. It scales

- up when nearly all slots were busy for half a minute, by a quarter at a time and never while
  the last addition still loads: a burst is over, or refused, before it adds anything;
- down by one when that many were not needed for five minutes, to zero too;
- down at once when somebody waits for the card;
- from zero at the first job: Serve does that by itself, before it asks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, cast
from weakref import WeakValueDictionary

from cluster.ai_models_types import RayOptions
from cluster.placement import Room
from cluster.supply import known_most, supply

if TYPE_CHECKING:  # the CLI imports this module, and must not import Ray
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

LOOK_BACK_S = 10.0
"""Load is the mean over this; so is `not a request`, which makes a model idle. Longer than the
pauses between jobs of a gateway that sends one after the other."""

REPORT_S = 2.0
"""Between two reports of a handle. With Serve's 10 s an idle model would be known as such, and
give way, 10 s later."""

BUSY = 0.8
"""Of the slots. Jobs never outnumber them, for what has no slot is refused at admission: waiting
for a queue, as Serve does, would be waiting for ever."""

SUSTAINED_S = 30.0
"""Of load before replicas are added: about what it takes to load a model."""

IDLE_S = 300.0
"""Before a replica that is not needed goes. It may come back in less, but not for free, and
where somebody else wants its card it goes at once."""

GROWTH = 0.25
"""At most, of the replicas there are, in one addition; one at least."""

UNASKED_S = 2.0
"""Serve starts a model from zero without asking its policy. One that exists and is not asked for
this long, twenty rounds, has a job waiting."""


LOOK_S = 1.0
"""Between two looks, of an idle model, at who waits. On hundreds of cards one takes 20 ms."""

Machines = Sequence[Mapping[str, float]]
"""Ray's resources of each that is alive."""


@lru_cache(maxsize=1)
def _machines(second: int) -> Machines:  # noqa: ARG001 - in which all scalers share one answer
    """Asks Ray, which takes it a millisecond or two."""
    from cluster import ray_cluster  # imports Ray

    return ray_cluster.node_resources()


class Scaler:
    """The policy of one model, in Serve's controller."""

    _all: ClassVar[WeakValueDictionary[str, "Scaler"]] = WeakValueDictionary()
    """By application. Serve drops a scaler with its deployment, and makes a new one for a new
    configuration."""

    def __init__(
        self,
        *,
        app: str,
        num_gpus: float,
        accelerator_type: str | None = None,
        autoscaler_gpus: str | None = None,
        sustained_s: float = SUSTAINED_S,
        idle_s: float = IDLE_S,
        machines: Callable[[int], Machines] = _machines,
    ) -> None:
        """Takes what the Serve config says.

        Args:
            app: the model's application.
            num_gpus: of each replica.
            accelerator_type: Ray's name of the GPU model that they need.
            autoscaler_gpus: what the cluster's autoscaler may add (`cluster.supply`).
            sustained_s: of load before replicas are added.
            idle_s: before one that is not needed goes.
            machines: those of the cluster in this second.
        """
        self._options = RayOptions(num_gpus=num_gpus, accelerator_type=accelerator_type)
        self._autoscaler_gpus = autoscaler_gpus
        self._machines = machines
        self._sustained_s = sustained_s
        self._idle_s = idle_s
        self._target = 0
        self._asked_at = monotonic()
        self._busy_since: float | None = None
        self._idle_since: float | None = None
        self._looked_at = 0.0
        self._all[app] = self

    def __call__(self, context: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        """Decides on the number of replicas; Serve keeps it within the model's bounds."""
        # Not the context's: that is the time of day, which may be set.
        now = monotonic()
        self._asked_at = now
        self._target = context.target_num_replicas
        wanted = max(self._wanted(context), context.capacity_adjusted_min_replicas)
        self._busy_since = self._since(self._busy_since, wanted > self._target, now)
        self._idle_since = self._since(self._idle_since, wanted < self._target, now)
        if self._busy_since is not None:
            if self._may_grow(context, now - self._busy_since):
                step = max(1, math.floor(self._target * GROWTH))
                self._target += self._fitting(min(wanted - self._target, step), now)
                self._busy_since = None
        elif self._idle_since is not None and (
            now - self._idle_since >= self._idle_s or self._in_the_way(now)
        ):
            self._target -= 1
            self._idle_since = None
        return self._target, {}

    def _wanted(self, context: "AutoscalingContext") -> int:
        # Of one replica: what the Serve config says.
        slots = cast("AutoscalingConfig", context.config).get_target_ongoing_requests()
        replicas = math.ceil(context.total_num_requests / (slots * BUSY))
        return min(replicas, context.capacity_adjusted_max_replicas)

    def _may_grow(self, context: "AutoscalingContext", busy_s: float) -> bool:
        loading = context.current_num_replicas < self._target
        return busy_s >= self._sustained_s and not loading

    @staticmethod
    def _since(since: float | None, holds: bool, now: float) -> float | None:
        return (now if since is None else since) if holds else None

    def _fitting(self, replicas: int, now: float) -> int:
        """How many of so many further replicas fit."""
        while replicas and self._left_out(now, further=replicas):
            replicas -= 1
        return replicas

    def _in_the_way(self, now: float) -> bool:
        """Whether somebody is left out who would not be without one of our replicas."""
        if now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        left_out = self._left_out(now)
        return left_out > 0 and self._left_out(now, further=-1) < left_out

    def _left_out(self, now: float, *, further: int = 0) -> int:
        """How many of all replicas do not fit, if we had `further` ones."""
        claims = [
            (scaler._options, scaler._claim(now) + (further if scaler is self else 0))
            for scaler in list(self._all.values())
        ]
        # Ray has room for large ones only where small ones do not stand in the way, and for those
        # of one type where others do not.
        claims.sort(key=lambda claim: (-claim[0].num_gpus, claim[0].accelerator_type is None))
        most = known_most(self._autoscaler_gpus)
        room = Room.of(supply(self._machines(int(now)), most))
        return sum(replicas - room.take_up_to(options, replicas) for options, replicas in claims)

    def _claim(self, now: float) -> int:
        """Replicas that there are to be, and the one that Serve starts without asking."""
        waiting = now - self._asked_at > UNASKED_S
        return max(self._target, 1) if waiting else self._target
