"""What fits on which GPUs, in file order, and what is said of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.ai_models import AIModel, load_ai_models
from cluster.placement import UNBOUNDED, GPUNode, Placement, Supply, place


def models(tmp_path: Path, *entries: dict[str, Any]) -> tuple[AIModel, ...]:
    """Models named a, b, c in the order of their entries."""
    file = tmp_path / "aiModels.json"
    file.write_text(
        json.dumps(
            [
                {"pipeline": "text-to-image", "model_id": f"org/{name}", **entry}
                for name, entry in zip("abcdef", entries, strict=False)
            ]
        )
    )
    return load_ai_models(file).models


def warm(capacity: int = 1, **options: Any) -> dict[str, Any]:
    return {"warm": True, "capacity": capacity, "ray": options}


def cold(capacity: int = 1, **options: Any) -> dict[str, Any]:
    return {"warm": False, "capacity": capacity, "ray": options}


def machines(*gpus: int, kind: str | None = None) -> Supply:
    return Supply(nodes=tuple(GPUNode(gpus=count, accelerator_type=kind) for count in gpus))


def bounds(placement: Placement) -> dict[str, tuple[int, int]]:
    """The replicas of each model that is served, by its name."""
    return {
        served.model.model_id.removeprefix("org/"): (served.min_replicas, served.max_replicas)
        for served in placement.served
    }


def test_all_fit_and_may_grow_into_what_is_left(tmp_path: Path) -> None:
    placement = place(models(tmp_path, warm(2), warm(1), cold()), supply=machines(4))
    assert bounds(placement) == {"a": (2, 3), "b": (1, 2), "c": (0, 1)}
    assert not placement.lacking


def test_the_first_of_the_file_come_first(tmp_path: Path) -> None:
    placement = place(models(tmp_path, warm(2), warm(4), warm(), cold()), supply=machines(3, 2))
    assert bounds(placement) == {"a": (2, 2), "b": (3, 3)}
    assert [str(lacking).partition(";")[0] for lacking in placement.lacking] == [
        "entry 2 (text-to-image org/b) lacks 1 GPU: 3 of its 4 replicas fit",
        "entry 3 (text-to-image org/c) lacks 1 GPU: it is not served",
        "entry 4 (text-to-image org/d) lacks 1 GPU: it is not served",
    ]
    assert "add GPUs" in str(placement.lacking[0])


def test_a_later_entry_that_fits_is_served(tmp_path: Path) -> None:
    placement = place(models(tmp_path, warm(num_gpus=2), warm(1)), supply=machines(1, 1))
    assert bounds(placement) == {"b": (1, 2)}
    (lacking,) = placement.lacking
    assert "entry 1 (text-to-image org/a) lacks 2 GPUs, 2 on one machine: " in str(lacking)


@pytest.mark.parametrize(
    ("shares", "cards", "fit"),
    [
        ((0.5, 0.5), 1, 2),
        ((0.6, 0.6), 1, 1),
        ((0.6, 0.6), 2, 2),
        ((0.1,) * 6, 1, 6),
        ((0.5, 0.7, 0.3, 0.5), 2, 4),
        ((0.5, 1), 1, 1),
        ((0, 0, 1), 1, 3),
    ],
)
def test_fractions_share_a_card(
    tmp_path: Path, shares: tuple[float, ...], cards: int, fit: int
) -> None:
    entries = [warm(num_gpus=float(share)) for share in shares]
    placement = place(models(tmp_path, *entries), supply=machines(cards))
    assert len(placement.served) == fit


def test_whole_gpus_are_those_of_one_machine(tmp_path: Path) -> None:
    entries = [warm(num_gpus=0.5), warm(2, num_gpus=2.0)]
    assert bounds(place(models(tmp_path, *entries), supply=machines(3, 3)))["b"] == (2, 2)
    assert bounds(place(models(tmp_path, *entries), supply=machines(2, 3)))["b"] == (1, 1)


def test_a_type_is_the_machine_s(tmp_path: Path) -> None:
    supply = Supply(nodes=(GPUNode(gpus=1), GPUNode(gpus=1, accelerator_type="H100")))
    placement = place(models(tmp_path, warm(2, accelerator_type="H100"), warm()), supply=supply)
    assert bounds(placement) == {"a": (1, 1), "b": (1, 1)}
    assert "lacks 1 GPU of type H100: 1 of its 2" in str(placement.lacking[0])


def test_what_the_autoscaler_can_add_counts(tmp_path: Path) -> None:
    supply = Supply(nodes=(), addable=(GPUNode(gpus=1),) * 3)
    placement = place(models(tmp_path, warm(), cold()), supply=supply)
    assert bounds(placement) == {"a": (1, 3), "b": (0, 2)}


def test_the_file_s_own_bound_is_kept(tmp_path: Path) -> None:
    entries = [warm(max_replicas=2), cold(max_replicas=9)]
    assert bounds(place(models(tmp_path, *entries), supply=machines(4))) == {
        "a": (1, 2),
        "b": (0, 3),
    }


def test_cold_models_share_what_warm_ones_leave(tmp_path: Path) -> None:
    placement = place(models(tmp_path, cold(), warm(), cold(3)), supply=machines(2))
    assert bounds(placement) == {"a": (0, 1), "b": (1, 2), "c": (0, 1)}
    (lacking,) = placement.lacking
    assert "entry 3 (text-to-image org/c) lacks 2 GPUs: 1 of its 3 replicas fit" in str(lacking)


@pytest.mark.parametrize("supply", [UNBOUNDED, machines(0)], ids=["unbounded", "no GPU"])
def test_models_on_cpus_are_not_bounded_by_gpus(tmp_path: Path, supply: Supply) -> None:
    entries = [warm(5, num_gpus=0.0), cold(2, num_gpus=0.0), warm(1, num_gpus=0.0, max_replicas=3)]
    placement = place(models(tmp_path, *entries), supply=supply)
    assert bounds(placement) == {"a": (5, 5), "b": (0, 2), "c": (1, 3)}


def test_entries_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    entries = [warm(1), {**warm(1), "url": "http://container.example:1"}, warm(1)]
    on_ray = [model for model in models(tmp_path, *entries) if not model.url]
    (lacking,) = place(on_ray, supply=machines(1)).lacking
    assert str(lacking).startswith("entry 3 (text-to-image org/c)")
