"""The policy's decisions, asked as Serve's controller asks it; with Serve in e2e/test_on_gpus."""

import time
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.scaling import IDLE_S, SUSTAINED_S, UNASKED_S, Scaler
from cluster.serve_config import POLICY

TICK_S = 0.5


class Controller:
    """Stands for Serve's controller: asks every policy in turn and does as they say at once."""

    def __init__(self, cards: int) -> None:
        self.machines = [{"GPU": float(cards)}]
        self.models: dict[str, Model] = {}
        self.now_s = time.monotonic()

    def add(self, name: str, *, minimum: int = 0, maximum: int = 9, num_gpus: float = 1) -> "Model":
        """Adds a model with its warm replicas."""
        scaler = Scaler(app=name, num_gpus=num_gpus, machines=lambda _: self.machines)
        self.models[name] = Model(scaler, minimum, maximum)
        return self.models[name]

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            for model in self.models.values():
                model.ask(self.now_s)


class Model:
    """One model's deployment: its load, its replicas, and its policy."""

    def __init__(self, scaler: Scaler, minimum: int, maximum: int) -> None:
        self.scaler, self.minimum, self.maximum = scaler, minimum, maximum
        self.replicas = minimum
        self.loading = 0
        """Of the replicas; they stay that way until a test says otherwise."""
        self.load = 0.0

    def ask(self, now_s: float) -> None:
        """One round of the controller."""
        with patch("cluster.scaling.monotonic", lambda: now_s):
            self._ask(now_s)

    def _ask(self, now_s: float) -> None:
        running = max(self.replicas - self.loading, 0)
        if running == 0 and self.load:
            # ray.serve.autoscaling_policy, _get_cold_start_scale_up_replicas
            self.replicas = max(1, self.replicas)
            return
        decided, _ = self.scaler(
            AutoscalingContext(
                deployment_id=DeploymentID(name="model"),
                deployment_name="model",
                app_name=None,
                current_num_replicas=running,
                target_num_replicas=self.replicas,
                running_replicas=[],
                total_num_requests=self.load,
                total_queued_requests=0.0,
                aggregated_metrics=None,
                raw_metrics=None,
                capacity_adjusted_min_replicas=self.minimum,
                capacity_adjusted_max_replicas=self.maximum,
                policy_state={},
                last_scale_up_time=None,
                last_scale_down_time=None,
                current_time=now_s,
                config=AutoscalingConfig(target_ongoing_requests=1),
            )
        )
        assert self.minimum <= decided <= self.maximum
        self.replicas = decided


@pytest.fixture(autouse=True)
def _no_others() -> Iterator[None]:
    """A controller has only its own scalers."""
    yield
    Scaler._all.clear()


def test_a_burst_adds_nothing() -> None:
    controller = Controller(cards=8)
    model = controller.add("a", minimum=1)
    for _ in range(3):
        model.load = 50
        controller.run(SUSTAINED_S - TICK_S)
        model.load = 0.5
        controller.run(TICK_S)
    assert model.replicas == 1


def test_sustained_load_adds_one_at_a_time() -> None:
    controller = Controller(cards=8)
    model = controller.add("a", minimum=1)
    model.load = 15
    controller.run(SUSTAINED_S + TICK_S)
    assert model.replicas == 2
    model.loading = 1
    controller.run(10 * SUSTAINED_S)
    assert model.replicas == 2, "the last one still loads"
    model.loading = 0
    controller.run(SUSTAINED_S + TICK_S)
    assert model.replicas == 3


def test_many_replicas_grow_by_a_quarter() -> None:
    controller = Controller(cards=99)
    model = controller.add("a", minimum=16, maximum=99)
    model.load = 16
    controller.run(SUSTAINED_S + TICK_S)
    assert model.replicas == 20
    controller.run(IDLE_S)
    assert model.replicas == 20, "and that is enough for 16 at a time"


def test_slots_taken_one_after_the_other_are_no_load() -> None:
    controller = Controller(cards=8)
    model = controller.add("a", minimum=2)
    model.load = 1.5
    controller.run(10 * SUSTAINED_S)
    assert model.replicas == 2


def test_what_is_not_needed_goes_later_and_warm_ones_never() -> None:
    controller = Controller(cards=8)
    model = controller.add("a", minimum=2)
    model.replicas = 4
    controller.run(IDLE_S - TICK_S)
    assert model.replicas == 4
    controller.run(2 * TICK_S)
    assert model.replicas == 3
    controller.run(5 * IDLE_S)
    assert model.replicas == 2


def test_a_cold_model_goes_to_zero() -> None:
    controller = Controller(cards=1)
    model = controller.add("a")
    model.load = 1
    controller.run(1)
    assert model.replicas == 1
    model.load = 0
    controller.run(IDLE_S)
    assert model.replicas == 1
    controller.run(2 * TICK_S)
    assert model.replicas == 0


def test_nobody_asks_for_more_than_fits() -> None:
    controller = Controller(cards=5)
    a, b = controller.add("a", minimum=1), controller.add("b", minimum=1)
    a.load = b.load = 50
    controller.run(20 * SUSTAINED_S)
    assert a.replicas + b.replicas == 5
    controller.machines.append({"GPU": 2.0})
    controller.run(20 * SUSTAINED_S)
    assert a.replicas + b.replicas == 7


def test_an_idle_cold_model_gives_way_to_one_with_a_job() -> None:
    controller = Controller(cards=1)
    a, b = controller.add("a"), controller.add("b")
    a.load = 1
    controller.run(1)
    b.load, b.loading = 1, 1
    controller.run(10 * UNASKED_S)
    assert (a.replicas, b.replicas) == (1, 1), "a is at work"
    a.load = 0
    controller.run(2 * TICK_S)
    assert (a.replicas, b.replicas) == (0, 1)


def test_it_does_not_give_way_where_there_is_room() -> None:
    controller = Controller(cards=2)
    a, b = controller.add("a"), controller.add("b")
    a.replicas = 1
    b.load, b.loading = 1, 1
    controller.run(10 * UNASKED_S)
    assert (a.replicas, b.replicas) == (1, 1)


def test_only_as_many_give_way_as_are_in_the_way() -> None:
    controller = Controller(cards=2)
    idle = [controller.add("a"), controller.add("b")]
    waiting = controller.add("c")
    for model in idle:
        model.replicas = 1
    waiting.load, waiting.loading = 1, 1
    controller.run(10 * UNASKED_S)
    assert sum(model.replicas for model in idle) == 1


def test_added_replicas_give_way_too_but_not_the_warm_ones() -> None:
    controller = Controller(cards=3)
    warm, cold = controller.add("a", minimum=1), controller.add("b", num_gpus=2)
    warm.replicas = 3
    cold.load, cold.loading = 1, 1
    controller.run(10 * UNASKED_S)
    assert warm.replicas == 1


def test_a_model_that_is_gone_waits_for_nothing() -> None:
    controller = Controller(cards=1)
    a, b = controller.add("a"), controller.add("b")
    a.replicas = 1
    b.load, b.loading = 1, 1
    del controller.models["b"], b
    controller.run(10 * UNASKED_S)
    assert a.replicas == 1


def test_serve_s_copies_are_of_one_class() -> None:
    config = AutoscalingConfig.model_validate({"policy": {"policy_function": POLICY}})
    assert config.policy.get_policy() is Scaler
