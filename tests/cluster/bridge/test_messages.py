"""What is said to the orchestrator and read from it: capabilities, hardware, jobs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ai_models import ModelKey
from cluster.bridge.address import Address
from cluster.bridge.capabilities import capabilities, hardware
from cluster.bridge.job import MAX_JOB_BYTES, Job, read_work
from cluster.bridge.peer import Peer
from cluster.bridge.results import failure
from cluster.capacity import Capacity, ModelCapacity
from cluster.errors import InsufficientCapacity, JobError, JobRejected
from cluster.protocol import lp_rpc_pb2 as pb
from deployments.hardware import GPU
from deployments.schemas.text_to_image import TextToImageRequest

A = ModelKey("text-to-image", "org/a")
B = ModelKey("text-to-image", "org/b")
PEER = Peer(address=Address("127.0.0.1", 8935))


def job(data: bytes | object, *, pipeline: str = "text-to-image") -> Job:
    payload = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Job(task_id=3, pipeline=pipeline, data=payload, peer=PEER, received_at=0.0)


def envelope(**request: object) -> object:
    return {"input_url": "", "request": request}


@pytest.mark.parametrize("name", ["p\r\nTaskId: 7", "\x1b[31m", "pipéline", "p" * 101])
def test_a_name_that_is_no_header_is_none(name: str) -> None:
    message = pb.NotifyAIJob(taskId=1, AIJobData=pb.AIJobData(pipeline=name))
    assert Job.from_message(message, peer=PEER, received_at=0.0).pipeline == "unknown"


def test_capabilities_as_a_go_worker_sends_them() -> None:
    capacity = Capacity(
        models={A: ModelCapacity(slots=4, warm=True), B: ModelCapacity(slots=1, warm=False)}
    )
    message = capabilities(capacity, version="0.9.1")
    assert list(message.bitstring) == [0x4005FFF | 1 << 27]
    assert dict(message.capacities) == dict.fromkeys([*range(13), 14, 26, 27], 1)
    assert message.version == "0.9.1"
    assert not message.mandatories
    assert message.constraints.minVersion == ""
    constraints = message.constraints.PerCapability[27].models
    assert {name: (model.warm, model.capacity) for name, model in constraints.items()} == {
        "org/a": (True, 4),
        "org/b": (False, 1),
    }


def test_hardware_is_one_entry_a_model() -> None:
    gpu = GPU(id="GPU-1", name="H100", major=9, minor=0, memory_free_bytes=5, memory_total_bytes=80)
    (entry,) = hardware({A: [gpu, gpu], B: []})
    assert (entry.pipeline, entry.model_id) == ("text-to-image", "org/a")
    assert sorted(entry.gpu_info) == ["0", "1"]
    assert entry.gpu_info["0"] == pb.GPUComputeInfo(
        id="GPU-1", name="H100", major=9, minor=0, memory_free=5, memory_total=80
    )


def test_a_job_as_go_marshals_it() -> None:
    data = (
        b'{"input_url":"","request":{"prompt":"a \\u003ccat\\u003e","model_id":"org/a",'
        b'"guidance_scale":2,"loras":null,"width":512,"height":512,"safety_check":false}}'
    )
    work = read_work(job(data), {A: None, B: None})
    assert work.key == A
    request = work.request()
    assert isinstance(request, TextToImageRequest)
    assert request.prompt == "a <cat>"
    assert request.guidance_scale == 2.0
    assert request.num_inference_steps == 50


def test_without_a_model_id_the_only_model_is_meant() -> None:
    assert read_work(job(envelope(prompt="x")), {A: None}).key == A
    with pytest.raises(JobRejected, match="model_id: must be given"):
        read_work(job(envelope(prompt="x")), {A: None, B: None})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (MAX_JOB_BYTES + 1), "the job has 16777217 bytes, more than the 16777216"),
        (b"[]", "`request` object"),
        (b'{"request": []}', "`request` object"),
        (b'{"input_url": ""}', "`request` object"),
        (envelope(prompt="x", model_id=5), "model_id: must be a string"),
        (envelope(model_id="org/a"), "prompt: Field required"),
        (envelope(model_id="org/a", prompt=""), "prompt: String should have at least 1"),
        (envelope(model_id="org/a", prompt="x", width=513), "width: .*multiple of 8"),
        (envelope(model_id="org/a", prompt="x", height=4096), "height: .*less than or equal"),
        (envelope(model_id="org/a", prompt="x", width=0), "width: "),
        (envelope(model_id="org/a", prompt="x", num_inference_steps=10**9), "num_inference_steps"),
        (envelope(model_id="org/a", prompt="x", num_images_per_prompt=11), "num_images_per_prompt"),
        (envelope(model_id="org/a", prompt="x", seed=2**63), "seed: "),
        (
            envelope(model_id="org/a", width=7, height=9),
            "prompt: Field required; height: .*; width: ",
        ),
    ],
)
def test_bad_jobs_are_rejected_with_every_reason(data: bytes | object, message: str) -> None:
    with pytest.raises(JobRejected, match=message) as raised:
        read_work(job(data), {A: None}).request()
    text = raised.value.network_text("text-to-image")
    assert text.startswith("text-to-image container returned 400: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    "unknown",
    [
        job(envelope(prompt="x", model_id="org/unknown")),
        job(envelope(prompt="x", model_id="org/a"), pipeline="mind-reading"),
    ],
)
def test_what_is_not_ours_may_be_somebody_elses(unknown: Job) -> None:
    with pytest.raises(InsufficientCapacity) as raised:
        read_work(unknown, {A: None})
    assert "insufficient capacity" in raised.value.network_text("text-to-image")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
FIELDS = st.sampled_from([*TextToImageRequest.model_fields, "extra"])


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_job_or_a_job_error(data: bytes) -> None:
    try:
        read_work(job(data), {A: None}).request()
    except JobError as error:
        (text,) = failure(error, "text-to-image").pieces
        assert b"\n" not in text


@given(st.dictionaries(FIELDS, JSON))
def test_any_request_is_within_the_bounds_or_rejected(request: dict[str, object]) -> None:
    try:
        work = read_work(job({"request": {**request, "model_id": "org/a"}}), {A: None})
        found = work.request()
    except JobRejected:
        return
    assert isinstance(found, TextToImageRequest)
    assert found.prompt
    assert 64 <= found.width <= 2048
    assert found.width % 8 == 0
    assert 1 <= found.num_images_per_prompt <= 10
