"""aiModels.json: which models this cluster serves. The file is shared with go-livepeer.

    cluster/ai_models_source.py   a file or the short form, to entries
    cluster/ai_models_entry.py    one entry, to an `AIModel` (cluster/ai_models_types.py)
    here                          what the entries say together, and how it is shown

It is read once, at the edge: past `load_ai_models` nobody sees the file's own fields.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

from cluster.ai_models_entry import ParsedEntry, parse_entry
from cluster.ai_models_source import read_entries
from cluster.ai_models_types import AIModel, ModelKey, OptimizationFlags, RayOptions
from cluster.errors import AIModelsError
from deployments.registry import PIPELINES

__all__ = [
    "AIModel",
    "AIModels",
    "ModelKey",
    "OptimizationFlags",
    "RayOptions",
    "format_table",
    "load_ai_models",
]

_ONE_VALUE = {"token": "token", "flags": "optimization_flags", "ray": "ray"}
"""Fields, and their names in the file, that all entries of a model have to agree on."""


@dataclass(frozen=True, kw_only=True)
class AIModels:
    """What an aiModels.json says."""

    models: tuple[AIModel, ...]
    """In file order; one for each model on Ray, and one for each url of a model."""
    warnings: tuple[str, ...]
    """What was set aside, each naming file, entry and field."""
    source: str
    """The file, or the short form itself."""

    def live_runner_price(self, key: ModelKey) -> dict[str, Any] | None:
        """What a model costs where it is a live runner, as heartbeats have it."""
        prices = [model.ray.live_runner_price for model in self.models if model.key == key]
        return next((price.model_dump() for price in prices if price), None)


@dataclass(frozen=True, kw_only=True)
class _Located:
    """A model and the entry that it comes from."""

    model: AIModel
    number: int
    where: str
    """`entry 2 (text-to-image org/name)`."""


def load_ai_models(source: str | os.PathLike[str]) -> AIModels:
    """Reads and checks an aiModels.json, or the short form `pipeline:model_id:warm,...`.

    Raises:
        AIModelsError: with every problem at once, each naming file, entry and field.
    """
    raw = read_entries(source)
    problems: list[str] = []
    warnings: list[str] = []
    located: list[_Located] = []
    for number, value in enumerate(raw.entries, start=1):
        parsed = parse_entry(value)
        where = _where(number, parsed)
        problems += [f"{where}: {problem}" for problem in parsed.problems]
        warnings += [f"{raw.label}: {where}: {warning}" for warning in parsed.warnings]
        if parsed.model is not None:
            model = replace(parsed.model, entry=number)
            located.append(_Located(model=model, number=number, where=where))
    models = _merge(located, problems)
    if not models and not problems:
        served = ", ".join(PIPELINES)
        problems.append(f"no entry is of a pipeline that a worker serves ({served})")
    if problems:
        raise AIModelsError([f"{raw.label}: {problem}" for problem in problems])
    return AIModels(models=models, warnings=tuple(warnings), source=raw.source)


def _where(number: int, parsed: ParsedEntry) -> str:
    return f"entry {number} ({parsed.name})" if parsed.name else f"entry {number}"


def _merge(located: list[_Located], problems: list[str]) -> tuple[AIModel, ...]:
    """Makes one model of the entries that say the same, and finds those that contradict."""
    firsts: dict[ModelKey, _Located] = {}
    merged: dict[tuple[ModelKey, str | None], _Located] = {}
    for entry in located:
        model = entry.model
        first = firsts.setdefault(model.key, entry)
        if first.model.warm != model.warm:
            # On the wire a model is warm or cold, whoever runs it; go-livepeer refuses it too.
            problems.append(
                f"{entry.where}: warm: must be as in entry {first.number}: a model is either "
                "warm or cold"
            )
        place = (model.key, model.url)
        twin = merged.setdefault(place, entry)
        if twin is entry:
            continue
        problems += [
            f"{entry.where}: {name}: must be as in entry {twin.number}, which is the same model"
            for field, name in _ONE_VALUE.items()
            if getattr(model, field) != getattr(twin.model, field)
        ]
        capacity = twin.model.capacity + model.capacity
        merged[place] = replace(twin, model=replace(twin.model, capacity=capacity))
    for entry in merged.values():
        limit, capacity = entry.model.ray.max_replicas, entry.model.capacity
        if limit is not None and limit < capacity:
            problems.append(
                f"{entry.where}: ray.max_replicas: must be at least the model's capacity, "
                f"{capacity}, got {limit}"
            )
    return tuple(entry.model for entry in merged.values())


def format_table(models: AIModels) -> str:
    """Returns the models as aligned columns under a heading, without tokens."""
    heading = ("PIPELINE", "MODEL", "WARM", "CAPACITY", "FLAGS", "RUNS ON")
    rows = [heading, *(_row(model) for model in models.models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _row(model: AIModel) -> tuple[str, ...]:
    flags = [("SFAST", model.flags.sfast), ("DEEPCACHE", model.flags.deepcache)]
    return (
        model.pipeline,
        model.model_id,
        "yes" if model.warm else "no",
        str(model.capacity),
        next((name for name, enabled in flags if enabled), "-"),
        _on_url(model) if model.url else _on_ray(model.ray),
    )


def _on_url(model: AIModel) -> str:
    return f"{model.url}, with a token" if model.token else f"{model.url}"


def _on_ray(options: RayOptions) -> str:
    parts = [f"Ray, {options.num_gpus:g} GPU a replica" if options.num_gpus else "Ray, CPU"]
    if options.engine:
        parts.append(f"engine {options.engine}")
    if options.accelerator_type:
        parts.append(f"on {options.accelerator_type}")
    if options.max_ongoing_requests > 1:
        parts.append(f"{options.max_ongoing_requests} requests at a time")
    if options.max_replicas:
        parts.append(f"up to {options.max_replicas} replicas")
    return ", ".join(parts)
