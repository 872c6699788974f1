"""Which models fit on the cluster's GPUs, in file order, and between which bounds each may scale.

Pure: no Ray in here. Given again whenever the file or the cluster changed, it answers anew.

Warm replicas come first: each has its share of a card for good. What they leave over is for cold
models and for replicas beyond the warm ones; any of them may take it, so the bounds of a single
model never exceed what exists, and cluster/scaling.py keeps the sum within it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.ai_models_types import MAX_CAPACITY, AIModel, RayOptions

UNIT = 10_000
"""Shares are counted in 1/10000 of a card, which is Ray's precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUNode:
    """The GPUs of one machine."""

    gpus: int
    accelerator_type: str | None = None
    """Ray's name of the GPU model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What there is to place models on."""

    nodes: tuple[GPUNode, ...] | None
    """Machines with GPUs. None: not known, or models run on CPUs, so that nothing is bounded."""
    addable: tuple[GPUNode, ...] = ()
    """Further machines that the cluster's autoscaler may start."""

    @property
    def gpus(self) -> int:
        """How many there are or can be."""
        return sum(node.gpus for node in (*(self.nodes or ()), *self.addable))


UNBOUNDED = Supply(nodes=None)
"""For CPU clusters, and where nobody knows the cluster yet."""


class Room:
    """Free shares of cards, machine by machine; None as `nodes` is room for everything."""

    def __init__(self, nodes: Sequence[tuple[str | None, Sequence[int]]] | None) -> None:
        """Takes per machine its accelerator type and the free share of each card."""
        self._nodes = None if nodes is None else [(kind, list(cards)) for kind, cards in nodes]

    @classmethod
    def of(cls, supply: Supply) -> "Room":
        """The room of an empty cluster; what has to be added is used last."""
        if supply.nodes is None:
            return cls(None)
        nodes = (*supply.nodes, *supply.addable)
        return cls([(node.accelerator_type, [UNIT] * node.gpus) for node in nodes])

    def copy(self) -> "Room":
        """Another room with the same shares."""
        return Room(self._nodes)

    def take(self, options: RayOptions) -> bool:
        """Takes what one replica needs; False, and nothing taken, where it does not fit.

        Cards are shared as Ray does on a machine: a fraction goes to the fullest card that has
        room for it, whole GPUs need cards of one machine that nobody else uses.
        """
        share = round(options.num_gpus * UNIT)
        if self._nodes is None or not share:
            return True
        for kind, cards in self._nodes:
            if options.accelerator_type not in (None, kind):
                continue
            if share <= UNIT:
                fitting = [index for index, free in enumerate(cards) if free >= share]
                chosen = sorted(fitting, key=cards.__getitem__)[:1]
            else:
                whole = [index for index, free in enumerate(cards) if free == UNIT]
                chosen = whole[: share // UNIT] if len(whole) * UNIT >= share else []
            for index in chosen:
                cards[index] -= min(share, UNIT)
            if chosen:
                return True
        return False

    def take_up_to(self, options: RayOptions, limit: int) -> int:
        """Takes for as many replicas as fit, `limit` at most, and returns their number."""
        taken = 0
        while taken < limit and self.take(options):
            taken += 1
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model, and how many replicas of it there may be."""

    model: AIModel
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """An entry that does not get all it wants. Its text is for the operator."""

    model: AIModel
    replicas: int
    """That do not fit."""
    served: int
    """That do."""

    @property
    def gpus(self) -> float:
        """How many GPUs are missing."""
        return self.replicas * self.model.ray.num_gpus

    @property
    def _remedy(self) -> str:
        if self.model.warm:
            return "add GPUs, lower its capacity or that of an entry above, or move it up"
        return "add GPUs, or lower its capacity or that of a warm entry"

    def __str__(self) -> str:
        options = self.model.ray
        kind = f" of type {options.accelerator_type}" if options.accelerator_type else ""
        whole = f", {options.num_gpus:g} on one machine" if options.num_gpus > 1 else ""
        some = (
            f"{self.served} of its {self.served + self.replicas} replicas fit"
            if self.served
            else "it is not served"
        )
        return (
            f"entry {self.model.entry} ({self.model.key}) lacks {self.gpus:g} "
            f"GPU{'' if self.gpus == 1 else 's'}{kind}{whole}: {some}; {self._remedy}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What to serve."""

    served: tuple[Served, ...]
    """In file order."""
    lacking: tuple[Lacking, ...]
    """In file order; an entry may be here and in `served`, with what fits of it."""


def place(models: Sequence[AIModel], *, supply: Supply) -> Placement:
    """Decides what fits.

    Args:
        models: those that this cluster runs itself, in file order.
        supply: the cluster's GPUs.
    """
    room = Room.of(supply)
    warm = {model.key: room.take_up_to(model.ray, model.capacity) for model in models if model.warm}
    served: list[Served] = []
    lacking: list[Lacking] = []
    for model in models:
        minimum = warm.get(model.key, 0)
        limit = _limit(model, supply)
        maximum = minimum + room.copy().take_up_to(model.ray, limit - minimum)
        fitting = minimum if model.warm else min(maximum, model.capacity)
        if fitting < model.capacity:
            lacking.append(Lacking(model=model, replicas=model.capacity - fitting, served=fitting))
        if fitting:
            served.append(Served(model=model, min_replicas=minimum, max_replicas=maximum))
    return Placement(served=tuple(served), lacking=tuple(lacking))


def _limit(model: AIModel, supply: Supply) -> int:
    """How many replicas there may be: what the file says or, on GPUs, as many as fit."""
    if model.ray.max_replicas is not None:
        return model.ray.max_replicas
    bounded = supply.nodes is not None and model.ray.num_gpus > 0
    return MAX_CAPACITY if bounded else model.capacity
