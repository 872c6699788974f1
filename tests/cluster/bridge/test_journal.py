"""What a bridge that dies leaves behind, and what the next one does with it."""

import asyncio
import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from cluster.bridge import journal as journal_module
from cluster.bridge.address import Address
from cluster.bridge.job import Job
from cluster.bridge.journal import Journal, open_journal
from cluster.bridge.left_over import answer_left_over
from cluster.bridge.peer import Peer, identify
from cluster.bridge.results import Delivery
from cluster.errors import ConfigError
from cluster.loopback import JobFailed, LoopbackOrchestrator
from tests.cluster.bridge.conftest import SECRET, Ask, address, capacity, registered, running


def opened(directory: Path, where: Address) -> Journal:
    return open_journal(directory, addresses=[where])


def job(task_id: int, peer: Peer, pipeline: str = "text-to-image") -> Job:
    return Job(task_id=task_id, pipeline=pipeline, data=b"{}", peer=peer, received_at=0.0)


def task_ids(journal: Journal) -> list[int]:
    return [job.task_id for job in journal.left_over()]


def only_file(directory: Path) -> Path:
    (file,) = directory.glob("*.jsonl")
    return file


@pytest.fixture
async def peer(orchestrator: LoopbackOrchestrator) -> Peer:
    return await identify(address(orchestrator))


async def test_what_is_unanswered_survives(tmp_path: Path, peer: Peer) -> None:
    first = opened(tmp_path, peer.address)
    for number in range(4):
        first.taken(job(number, peer))
    first.answered(job(1, peer))
    first.answered(job(3, peer))
    first.close()
    second = opened(tmp_path, peer.address)
    assert task_ids(second) == [0, 2]
    (again, _) = second.left_over()
    assert (again.peer, again.pipeline) == (peer, "text-to-image")
    assert asyncio.get_running_loop().time() - again.received_at < 60
    second.close()


async def test_a_torn_line_costs_itself_only(
    tmp_path: Path, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened(tmp_path, peer.address)
    for number in range(3):
        first.taken(job(number, peer))
    first.close()
    file = only_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    second = opened(tmp_path, peer.address)
    assert task_ids(second) == [0, 1]
    assert "dropped 1 lines that cannot be read" in caplog.text
    second.close()


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\xff\n",
        b"[]\n",
        b'{"taken": ["ab", "1", "llm", 1.0]}\n',
        b'{"peer": {"host": "h", "port": 1, "pem": "-----BEGIN CERTIFICATE-----"}}\n',
        b"1\n" * 3,
        b"[" * 100_000 + b"\n",
    ],
)
async def test_junk_is_dropped(tmp_path: Path, peer: Peer, junk: bytes) -> None:
    first = opened(tmp_path, peer.address)
    first.taken(job(5, peer))
    first.close()
    file = only_file(tmp_path)
    file.write_bytes(junk + file.read_bytes() + junk)
    second = opened(tmp_path, peer.address)
    assert task_ids(second) == [5]
    second.close()


async def test_old_jobs_are_forgotten(tmp_path: Path, peer: Peer) -> None:
    first = opened(tmp_path, peer.address)
    first.taken(job(1, peer))
    first.close()
    file = only_file(tmp_path)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["taken"][3] -= 16 * 60.0
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    second = opened(tmp_path, peer.address)
    assert task_ids(second) == []
    second.close()


async def test_after_a_restart_of_the_machine_its_jobs_are_answered(
    tmp_path: Path, peer: Peer
) -> None:
    first = opened(tmp_path, peer.address)
    first.taken(job(1, peer))
    first.close()
    file = only_file(tmp_path)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    # As if its clock, which starts with the machine, had been far ahead of what it is now.
    lines[1]["taken"][3] += 1e6
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    second = opened(tmp_path, peer.address)
    (left,) = second.left_over()
    assert 0 <= asyncio.get_running_loop().time() - left.received_at < 60
    second.close()


async def test_a_clock_that_is_set_changes_nothing(
    tmp_path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path, peer.address)
    first.taken(job(1, peer))
    first.close()
    now = time.time()
    for hours in (-24, 24):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3600)
        second = opened(tmp_path, peer.address)
        (left,) = second.left_over()
        assert 0 <= asyncio.get_running_loop().time() - left.received_at < 60
        second.close()


async def test_the_file_stays_small(
    tmp_path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_BYTES", 5_000)
    journal = opened(tmp_path, peer.address)
    journal.taken(job(0, peer))
    file = only_file(tmp_path)
    for number in range(1, 500):
        journal.taken(job(number, peer))
        journal.answered(job(number, peer))
        assert file.stat().st_size < 6_000
    journal.close()
    again = opened(tmp_path, peer.address)
    assert task_ids(again) == [0]
    again.close()


@contextmanager
def disk_full(at_bytes: int) -> Iterator[None]:
    """The kernel lets no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(
    tmp_path: Path, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    journal = opened(tmp_path, peer.address)
    journal.taken(job(1, peer))
    with disk_full(only_file(tmp_path).stat().st_size + 7):
        journal.taken(job(2, peer))
        journal.taken(job(3, peer))
        journal.answered(job(1, peer))
    assert caplog.text.count("cannot be written") == 1
    journal.taken(job(4, peer))
    assert "can be written again" in caplog.text
    journal.close()
    again = opened(tmp_path, peer.address)
    assert task_ids(again) == [2, 3, 4]
    again.close()


async def test_a_full_disk_costs_no_job(
    orchestrator: LoopbackOrchestrator,
    ask: Ask,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So small that the file is also written anew, which is where it is made smaller.
    monkeypatch.setattr(journal_module, "MAX_BYTES", 100)
    journal = opened(tmp_path, address(orchestrator))
    async with running(address(orchestrator), capacity(a=1), journal=journal) as bridge:
        await registered(orchestrator)
        assert (await ask())[0] == 200
        with disk_full(7):
            assert [(await ask())[0] for _ in range(4)] == [200] * 4
        assert (await ask())[0] == 200
        while len(bridge.records) < 6:
            await asyncio.sleep(0.01)
    assert caplog.text.count("cannot be written") == 1
    assert task_ids(journal) == []
    journal.close()


async def test_its_end_waits_for_the_disk_and_leaves_no_sync_for_later(
    tmp_path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()
    synced: list[int] = []

    def sync(file: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            go.wait()
        synced.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "fdatasync", sync)
    journal = opened(tmp_path, peer.address)
    journal.taken(job(1, peer))
    journal.taken(job(2, peer))
    inode = only_file(tmp_path).stat().st_ino
    journal.close()
    at_its_end = list(synced)
    # The one that ran meanwhile ends, when others have the journal's descriptors.
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        go.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        for _ in range(5):
            await asyncio.sleep(0)
    assert at_its_end == [inode]
    assert synced == [inode] * 2
    assert caplog.text == "", "another one was not even tried"


async def test_bridges_of_one_machine_have_journals_of_their_own(
    tmp_path: Path, peer: Peer
) -> None:
    first, second = opened(tmp_path, peer.address), opened(tmp_path, peer.address)
    first.taken(job(1, peer))
    second.taken(job(2, peer))
    first.close()
    third = opened(tmp_path, peer.address)
    assert task_ids(third) == [1]
    other = opened(tmp_path, Address("another.example", 8935))
    assert task_ids(other) == [], "it never hears of another orchestrator's jobs"
    for journal in (second, third, other):
        journal.close()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--state-dir: .*file/below cannot be written"):
        opened(tmp_path / "file/below", Address("a.example", 1))


async def test_the_next_bridge_answers_what_the_last_one_left(
    orchestrator: LoopbackOrchestrator, ask: Ask, tmp_path: Path
) -> None:
    where = address(orchestrator)
    dying = opened(tmp_path, where)
    async with running(where, capacity(a=1), journal=dying) as bridge:
        await registered(orchestrator)
        bridge.backend.hold.clear()
        asked = asyncio.create_task(ask())
        await bridge.backend.wait_for_started(1)
        # As after a SIGKILL: nothing but what is on the disk is known.
        file = only_file(tmp_path)
        left = tmp_path / "next"
        left.mkdir()
        (left / file.name).write_bytes(file.read_bytes())
        journal = opened(left, where)
        async with Delivery(secret=SecretStr(SECRET)) as delivery:
            await answer_left_over(journal, delivery)
        status, document = await asked
        assert status == 503
        assert "insufficient capacity: this worker was restarted" in str(document)
        assert task_ids(journal) == []
        journal.close()
    dying.close()


async def test_another_orchestrator_process_never_hears_of_them(tmp_path: Path) -> None:
    async with LoopbackOrchestrator(secret=SECRET) as first:
        where = address(first)
        journal = opened(tmp_path, where)
        journal.taken(job(0, await identify(where)))
    async with LoopbackOrchestrator(secret=SECRET, port=where.port) as second:
        async with running(where, capacity(a=1)) as bridge:
            await registered(second)
            bridge.backend.hold.clear()
            sent = asyncio.create_task(
                second.send_job(
                    worker=second.workers[0],
                    pipeline="text-to-image",
                    request_data=b'{"request": {"prompt": "x", "model_id": "org/a"}}',
                )
            )
            await bridge.backend.wait_for_started(1)
            async with Delivery(secret=SecretStr(SECRET)) as delivery:
                await answer_left_over(journal, delivery)
            assert not sent.done(), "its task id is 0, too"
            bridge.backend.hold.set()
            assert len((await sent).files) == 1
        assert second.faults == []
    assert task_ids(journal) == []
    journal.close()


async def test_answered_jobs_leave_nothing(
    orchestrator: LoopbackOrchestrator, ask: Ask, tmp_path: Path
) -> None:
    where = address(orchestrator)
    journal = opened(tmp_path, where)
    async with running(where, capacity(a=1), journal=journal):
        await registered(orchestrator)
        assert (await ask())[0] == 200
        with pytest.raises(JobFailed):
            await orchestrator.send_job(
                worker=orchestrator.workers[0], pipeline="text-to-image", request_data=b"{"
            )
    assert task_ids(journal) == []
    journal.close()
