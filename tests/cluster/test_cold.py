"""Cold models are advertised where a card is free or can be freed, and not elsewhere."""

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.ai_models import AIModel, ModelKey, RayOptions, load_ai_models
from cluster.capacity import Capacity, ModelStatus, capacity_of
from cluster.cold import Activity, Scaling, room_beside_the_warm
from cluster.placement import GPUNode, Room, Supply
from cluster.scaling import LOOK_BACK_S

MODELS = load_ai_models("text-to-image:org/a:false,text-to-image:org/b:false").models
A, B = (model.key for model in MODELS)
A_CARD = RayOptions()


def state(*, cards: int, running: int = 0, held: int | None = None) -> ModelStatus:
    """Of a model with three replicas at most; `held` is `running` where nothing is said."""
    return ModelStatus(
        state="RUNNING",
        running=running,
        scaling=Scaling(
            min_replicas=0,
            max_replicas=3,
            running=running,
            held=running if held is None else held,
            needs=A_CARD,
            room=Room.of(Supply(nodes=(GPUNode(gpus=cards),))),
        ),
    )


def slots(capacity: Capacity) -> tuple[int, int]:
    return capacity.slots(A), capacity.slots(B)


def test_before_the_first_job_there_is_what_the_entry_says() -> None:
    status = {A: state(cards=2), B: state(cards=2)}
    assert slots(capacity_of(MODELS, status)) == (1, 1)
    wanting: list[AIModel] = [replace(model, capacity=5) for model in MODELS]
    assert slots(capacity_of(wanting, status)) == (2, 2), "as far as there are cards"
    on_cpus = state(cards=0)
    assert on_cpus.scaling is not None
    on_cpus = replace(on_cpus, scaling=replace(on_cpus.scaling, needs=RayOptions(num_gpus=0)))
    status = {A: on_cpus, B: on_cpus}
    assert slots(capacity_of(wanting, status)) == (3, 3), "on CPUs as far as the bound"


def test_without_a_card_there_is_nothing() -> None:
    assert not capacity_of(MODELS, {A: state(cards=0)})


def test_not_deployed_or_failed_is_nothing() -> None:
    assert not capacity_of(MODELS, {})
    assert not capacity_of(MODELS, {A: replace(state(cards=1), state="DEPLOY_FAILED")})


def test_a_model_at_work_keeps_its_card_and_an_idle_one_does_not() -> None:
    status = {A: state(cards=1, running=1), B: state(cards=1)}
    assert slots(capacity_of(MODELS, status, at_work={A})) == (1, 0)
    assert slots(capacity_of(MODELS, status)) == (1, 1)
    status = {A: state(cards=2, running=1), B: state(cards=2)}
    assert slots(capacity_of(MODELS, status, at_work={A})) == (1, 1)


def test_what_runs_beyond_the_capacity_counts() -> None:
    status = {A: state(cards=3, running=3), B: state(cards=3)}
    assert slots(capacity_of(MODELS, status, at_work={A})) == (3, 0)


def test_a_model_takes_no_more_jobs_while_another_waits_for_its_card() -> None:
    waiting = state(cards=1, running=0, held=1)
    status = {A: state(cards=1, running=1), B: waiting}
    assert slots(capacity_of(MODELS, status, at_work={A, B})) == (0, 0)
    assert slots(capacity_of(MODELS, status, at_work={B})) == (0, 1)
    failed = {**status, B: replace(waiting, state="DEPLOY_FAILED")}
    assert slots(capacity_of(MODELS, failed, at_work={A, B})) == (1, 0)
    assert waiting.scaling is not None
    reloading = replace(waiting, scaling=replace(waiting.scaling, min_replicas=1))
    status = {A: state(cards=0, running=1), B: reloading}
    capacity = capacity_of(MODELS, status, at_work={A, B})
    assert slots(capacity) == (1, 0), "a warm one waits for a card of its own"
    roomy = {A: state(cards=2, running=1), B: state(cards=2, running=0, held=1)}
    assert slots(capacity_of(MODELS, roomy, at_work={A, B})) == (1, 1), "it only loads"


def together(*arguments: Any, **options: Any) -> tuple[int, int]:
    return slots(capacity_of(*arguments, **options).together())


def test_a_card_that_several_could_have_is_offered_in_turn() -> None:
    status = {A: state(cards=1), B: state(cards=1)}
    assert slots(capacity_of(MODELS, status).each_alone()) == (1, 1)
    assert [together(MODELS, status, turn=turn) for turn in range(3)] == [(1, 0), (0, 1), (1, 0)]
    enough = {A: state(cards=2), B: state(cards=2)}
    assert [together(MODELS, enough, turn=turn) for turn in range(2)] == [(1, 1), (1, 1)]
    assert capacity_of(MODELS, enough) == capacity_of(MODELS, enough).each_alone()


def test_a_card_in_use_is_not_offered_in_turn() -> None:
    status = {A: state(cards=1, running=1), B: state(cards=1)}
    assert [together(MODELS, status, {A}, turn=turn) for turn in range(2)] == [(1, 0), (1, 0)]
    wanting: list[AIModel] = [replace(model, capacity=2) for model in MODELS]
    status = {A: state(cards=2, running=1), B: state(cards=2)}
    assert [together(wanting, status, {A}, turn=turn) for turn in range(2)] == [(2, 0), (1, 1)]


def test_an_idle_replica_beyond_the_warm_ones_keeps_its_card_as_it_is_announced() -> None:
    models = [replace(MODELS[0], warm=True), MODELS[1]]
    beyond = state(cards=1, running=2)
    assert beyond.scaling is not None
    status = {
        A: replace(beyond, scaling=replace(beyond.scaling, min_replicas=1)),
        B: state(cards=1),
    }
    assert [together(models, status, turn=turn) for turn in range(2)] == [(2, 0), (2, 0)]


SHARES = (0.25, 0.5, 1, 2)


@given(
    cards=st.integers(0, 4),
    models=st.lists(
        st.tuples(st.sampled_from(SHARES), st.integers(1, 3), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    turn=st.integers(0, 9),
)
def test_all_that_is_offered_together_fits(
    cards: int, models: list[tuple[float, int, int, bool]], turn: int
) -> None:
    """Each cold model: its share of a card, its capacity, its replicas, whether it has jobs."""
    empty = Room.of(Supply(nodes=(GPUNode(gpus=cards),)))
    entries, status, busy = [], {}, set()
    occupied = empty.copy()
    for number, (share, capacity, running, at_work) in enumerate(models):
        needs = RayOptions(num_gpus=share)
        entry = replace(MODELS[0], model_id=f"org/{number}", capacity=capacity, ray=needs)
        held = occupied.take_up_to(needs, running)
        scaling = replace(_scaling(cards, held), needs=needs)
        status[entry.key] = replace(state(cards=cards), running=held, scaling=scaling)
        entries.append(entry)
        busy |= {entry.key} if at_work else set()
    capacity_now = capacity_of(entries, status, busy, turn=turn).together()
    for entry in entries:
        wanted = capacity_now.slots(entry.key)
        assert empty.take_up_to(entry.ray, wanted) == wanted


def _scaling(cards: int, running: int) -> Scaling:
    scaling = state(cards=cards, running=running).scaling
    assert scaling is not None
    return scaling


def test_a_pause_between_jobs_is_work() -> None:
    jobs: Counter[ModelKey] = Counter()
    activity = Activity(lambda: jobs)
    assert activity.at_work(0.0) == set()
    jobs[A] += 1
    assert activity.at_work(100.0) == {A}
    jobs[A] -= 1
    assert activity.at_work(100.0 + 0.9 * LOOK_BACK_S) == {A}
    assert activity.at_work(100.0 + LOOK_BACK_S) == set()


def test_serve_s_details_are_read() -> None:
    deployment = {
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 4,
            },
            "ray_actor_options": {"num_gpus": 0.5},
        },
        "target_num_replicas": 2,
        "replicas": [{}],
    }
    scaling = Scaling.read(deployment, running=1, room=Room(None))
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert (scaling.running, scaling.held, scaling.needs.num_gpus) == (1, 2, 0.5)
    deployment["deployment_config"] = {"autoscaling_config": None}
    assert Scaling.read(deployment, running=1, room=Room(None)) is None


def test_cold_models_have_what_the_warm_ones_leave_over() -> None:
    def application(policy: dict[str, str] | None, held: int, **actor: Any) -> dict[str, Any]:
        config: dict[str, Any] = {"ray_actor_options": actor}
        if policy is not None:
            config["autoscaling_config"] = {
                "min_replicas": 1,
                "policy": {"policy_kwargs": policy},
            }
        deployment = {"deployment_config": config, "target_num_replicas": held}
        return {"deployments": {"model": deployment}}

    def left(*applications: dict[str, Any]) -> int:
        named = {str(number): one for number, one in enumerate(applications)}
        room = room_beside_the_warm(named, [{"CPU": 8.0}, {"GPU": 4.0}])
        return room.take_up_to(A_CARD, 99)

    assert left() == 4
    assert left(application({}, 3, num_gpus=1)) == 3, "what is beyond the warm ones may go"
    assert left(application(None, 3, num_gpus=1.0)) == 1, "what somebody else fixed may not"
    assert left(application({"autoscaler_gpus": "2x4"}, 1, num_gpus=2)) == 6
    assert left({"deployments": {}}, application(None, 1)) == 4
