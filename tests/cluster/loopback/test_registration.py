"""Who may register, and what is known of them."""

import grpc
import pytest

from cluster.errors import ConfigError
from cluster.loopback import LoopbackOrchestrator
from cluster.loopback.registration import PATH, parse_version
from cluster.protocol import lp_rpc_pb2 as pb
from tests.cluster.loopback.wire import (
    MODEL,
    SECRET,
    Caller,
    capabilities,
    registered,
    registering,
)

OK = grpc.StatusCode.OK


async def test_a_worker_connects_and_leaves(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    gpu = pb.GPUComputeInfo(id="GPU-1", name="H100", major=9, memory_total=80 << 30)
    hardware = pb.HardwareInformation(pipeline="text-to-image", model_id=MODEL, gpu_info={"0": gpu})
    advertised = capabilities({MODEL: 2, "acme/other": 3}, version="0.8.10")
    async with (
        registered(orchestrator, advertised, hardware=[hardware]) as worker,
        registered(orchestrator, capabilities({MODEL: 5})),
    ):
        status = await caller.status()
        assert status["capacity"]["text-to-image"] == {
            MODEL: {"capacity": 7, "in_use": 0},
            "acme/other": {"capacity": 3, "in_use": 0},
        }
        first, second = status["workers"]
        assert first["peer"] == worker.peer
        assert first["peer"] != second["peer"]
        assert first["version"] == "0.8.10"
        assert first["hardware"][0]["gpu_info"]["0"]["name"] == "H100"
        assert second["capacity"] == {"text-to-image": {MODEL: {"capacity": 5, "in_use": 0}}}
    await orchestrator.wait_for_workers(lambda workers: not workers)
    assert orchestrator.faults == []


@pytest.mark.parametrize("secret", ["", "s3cret", f"{SECRET} ", "\N{SNOWMAN}"])
async def test_a_wrong_secret_ends_the_call(
    orchestrator: LoopbackOrchestrator, secret: str
) -> None:
    async with registering(orchestrator, capabilities(), secret=secret) as worker:
        assert await worker.ended() == (grpc.StatusCode.UNKNOWN, "invalid secret")
    assert orchestrator.workers == ()


@pytest.mark.parametrize("version", ["", "undefined", "0.7.99", "0.8", "v0.9.1", "0.8.0.1", "x"])
async def test_an_old_version_ends_the_call_without_an_error(
    orchestrator: LoopbackOrchestrator, version: str
) -> None:
    async with registering(orchestrator, capabilities(version=version)) as worker:
        assert await worker.call.read() is grpc.aio.EOF
        assert await worker.ended() == (OK, "")
    assert orchestrator.workers == ()


@pytest.mark.parametrize("version", ["0.8.0", "0.8.0-rc.1", "0.8.0+5be0", "0.10.0", "1.0.0-a+b"])
async def test_a_version_is_compared_without_its_suffix(
    orchestrator: LoopbackOrchestrator, version: str
) -> None:
    async with registered(orchestrator, capabilities(version=version)):
        assert [worker.version for worker in orchestrator.workers] == [version]


async def test_the_needed_version_is_a_setting() -> None:
    async with (
        LoopbackOrchestrator(secret=SECRET, version="0.9.2") as orchestrator,
        registering(orchestrator, capabilities(version="0.9.1")) as worker,
    ):
        assert (await worker.ended())[0] is OK
    assert parse_version("0.9.2-5") == (0, 9, 2)
    with pytest.raises(ValueError, match=r"'0\.9'"):
        LoopbackOrchestrator(secret=SECRET, version="0.9")


@pytest.mark.parametrize(
    "advertised",
    [
        pytest.param(pb.Capabilities(version="0.9.1"), id="no constraints"),
        pytest.param(capabilities({}), id="no model"),
        pytest.param(capabilities({MODEL: 0}), id="no capacity"),
        pytest.param(capabilities({MODEL: 4}, capability=28), id="another pipeline"),
        pytest.param(
            pb.Capabilities(version="0.9.1", bitstring=[1 << 27], capacities={27: 1}),
            id="only the bits",
        ),
    ],
)
async def test_without_capacity_a_worker_is_connected_and_never_selected(
    orchestrator: LoopbackOrchestrator, caller: Caller, advertised: pb.Capabilities
) -> None:
    async with registered(orchestrator, advertised):
        reply = await caller.generate()
        assert (reply.status, reply.error) == (503, "insufficient capacity")
        assert reply.task_id is None


async def test_a_second_registration_on_one_connection_is_a_fault(
    orchestrator: LoopbackOrchestrator,
) -> None:
    async with registered(orchestrator) as worker:
        request = pb.RegisterAIWorkerRequest(secret=SECRET, capabilities=capabilities())
        code, _ = await worker.call_again(PATH, request.SerializeToString())
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert len(orchestrator.workers) == 1
    assert [fault.peer for fault in orchestrator.faults] == [worker.peer]


async def test_an_unknown_method_is_unimplemented(orchestrator: LoopbackOrchestrator) -> None:
    async with registered(orchestrator) as worker:
        code, _ = await worker.call_again("/net.AIWorker/Other", b"")
        assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_bytes_that_are_no_registration_are_a_fault(
    orchestrator: LoopbackOrchestrator,
) -> None:
    async with registered(orchestrator) as worker:
        code, _ = await worker.call_again(PATH, b"\xff\xff")
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(orchestrator.faults) == 1


def test_a_secret_is_needed() -> None:
    with pytest.raises(ConfigError, match="--orch-secret"):
        LoopbackOrchestrator(secret="")
