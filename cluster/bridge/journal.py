"""Which jobs were taken and not answered, on disk: what a bridge that dies leaves to the next one.

The orchestrator waits 15 minutes for an answer and then drops the whole worker. So the next
bridge answers what the last one could not, with an error, and only to the same orchestrator
process, which its certificate tells: task ids start anew with each.

The file has a JSON line a fact: a peer (a certificate), a job taken, a job answered. A line that
cannot be read (the last one, torn by a crash) is dropped and said; the others count. A disk that
is full costs the journal and no job.
"""

import asyncio
import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bridge.address import Address
from cluster.bridge.job import Job
from cluster.bridge.peer import Peer, peer_with
from cluster.bridge.results import JOB_LIMIT_S
from cluster.errors import ConfigError, OrchestratorUnreachable

logger = logging.getLogger(__name__)

MAX_BYTES = 1_000_000
"""After which answered jobs are left out of the file: some 5,000 jobs."""

MAX_BRIDGES = 64
"""On one machine for the same orchestrators, each with a file of its own."""

MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a line that is none may raise."""

Key = tuple[str, int]
"""Certificate fingerprint and task id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    pipeline: str
    at_s: float
    """By the machine's monotonic clock, which all its processes share. Whatever happens to the
    time of day, and when the machine starts anew and this clock with it, a job is taken for
    younger than it is, never for older."""


class Journal:
    """One bridge's journal. Used in the event loop; only its way to the disk is not waited for."""

    def __init__(self, *, path: Path, lock: int) -> None:
        """Reads what is there; see `open_journal`.

        Args:
            path: of the file, which need not exist.
            lock: file descriptor that keeps other bridges off it.
        """
        self._path = path
        self._lock = lock
        self._peers: dict[str, Peer] = {}
        self._open: dict[Key, _Taken] = {}
        self._rewrite_at_bytes = MAX_BYTES
        self._broken = False
        self._dirty = False
        self._syncing: asyncio.Future[None] | None = None
        self._read()
        self._file = -1
        self._rewrite()

    @property
    def unanswered(self) -> int:
        """How many jobs stand in it."""
        return len(self._open)

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return os.fstat(self._file).st_size

    def left_over(self) -> list[Job]:
        """The jobs of an earlier bridge that may still be answered; to be called in the loop."""
        now = asyncio.get_running_loop().time()
        return [
            Job(
                task_id=task_id,
                pipeline=taken.pipeline,
                data=b"",
                peer=self._peers[fingerprint],
                received_at=min(taken.at_s, now),
            )
            for (fingerprint, task_id), taken in self._open.items()
        ]

    def taken(self, job: Job) -> None:
        """Notes a job before any work is done for it."""
        fingerprint = job.peer.fingerprint
        if not fingerprint:
            # In plaintext nothing tells one orchestrator process from the next.
            return
        key, taken = (
            (fingerprint, job.task_id),
            _Taken(pipeline=job.pipeline, at_s=time.monotonic()),
        )
        self._open[key] = taken
        lines = [_taken_line(key, taken)]
        if fingerprint not in self._peers:
            self._peers[fingerprint] = job.peer
            lines.insert(0, {"peer": _peer_line(job.peer)})
        self._append(lines)

    def answered(self, job: Job) -> None:
        """Notes that there is nothing left to say about a job."""
        key = (job.peer.fingerprint, job.task_id)
        noted = self._open.pop(key, None) is not None
        # While the disk is full the next job that is taken shows whether it still is.
        if noted and not self._broken:
            self._append([{"answered": key}])

    def close(self) -> None:
        """Has the disk keep what was written, and lets go of the file; the unanswered stays in it.

        A sync that still runs has a descriptor of its own, and none comes after it.
        """
        self._dirty = False
        try:
            os.fdatasync(self._file)
        except OSError as error:
            self._say_broken(error)
        os.close(self._file)
        os.close(self._lock)

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        try:
            if self._broken:
                # With what could not be written meanwhile: jobs taken, and jobs answered.
                self._rewrite()
                self._broken = False
                logger.warning("%s: can be written again", self._path)
            else:
                _write_all(self._file, _encoded(lines))
                if os.fstat(self._file).st_size > self._rewrite_at_bytes:
                    self._rewrite()
        except OSError as error:
            self._say_broken(error)
        else:
            self._sync_soon()

    def _rewrite(self) -> None:
        """Leaves only what is open, in a new file in the old one's place."""
        lines = [{"peer": _peer_line(self._peers[name])} for name in {key[0] for key in self._open}]
        lines += [_taken_line(key, taken) for key, taken in self._open.items()]
        data = _encoded(lines)
        new = self._path.with_suffix(".new")
        file = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            _write_all(file, data)
            new.replace(self._path)
        except OSError:
            os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._rewrite_at_bytes = max(MAX_BYTES, 2 * len(data))
        self._peers = {name: self._peers[name] for name in {key[0] for key in self._open}}

    def _say_broken(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            logger.error(
                "%s cannot be written (%s): jobs go on, and what is unanswered when this process "
                "is killed stays unanswered",
                self._path,
                error,
            )

    def _sync_soon(self) -> None:
        """Has the disk keep what was written, off the event loop; several writes at once."""
        self._dirty = True
        if self._syncing is not None and not self._syncing.done():
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._dirty = False
        # A copy: the file may be replaced and closed meanwhile.
        self._syncing = loop.run_in_executor(None, _sync_and_close, os.dup(self._file))
        self._syncing.add_done_callback(self._synced)

    def _synced(self, syncing: "asyncio.Future[None]") -> None:
        error = syncing.exception() if not syncing.cancelled() else None
        if isinstance(error, OSError):
            self._say_broken(error)
        elif self._dirty:
            self._sync_soon()

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        unreadable = 0
        for line in filter(None, lines):
            try:
                self._read_line(json.loads(line))
            except (*MALFORMED, OrchestratorUnreachable):
                unreadable += 1
        if unreadable:
            logger.warning("%s: dropped %d lines that cannot be read", self._path, unreadable)
        too_old = time.monotonic() - JOB_LIMIT_S
        self._open = {
            key: taken
            for key, taken in self._open.items()
            if taken.at_s > too_old and key[0] in self._peers
        }

    def _read_line(self, line: dict[str, Any]) -> None:
        match line:
            case {"peer": {"host": str(host), "port": int(port), "pem": str(pem)}}:
                peer = peer_with(Address(host, port), pem)
                self._peers[peer.fingerprint] = peer
            case {"taken": [str(fingerprint), int(task_id), str(pipeline), float(at_s)]}:
                self._open[fingerprint, task_id] = _Taken(pipeline=pipeline, at_s=at_s)
            case {"answered": [str(fingerprint), int(task_id)]}:
                self._open.pop((fingerprint, task_id), None)
            case _:
                raise ValueError("not a line of a journal")


def open_journal(directory: Path, *, addresses: Sequence[Address]) -> Journal:
    """Opens the journal of the bridge to these orchestrators, or starts one.

    Further bridges to the same ones on this machine get files of their own.

    Raises:
        ConfigError: the directory cannot be written.
    """
    names = " ".join(sorted(map(str, addresses)))
    stem = f"journal-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(MAX_BRIDGES):
            lock = os.open(directory / f"{stem}-{number}.lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            return Journal(path=directory / f"{stem}-{number}.jsonl", lock=lock)
    except OSError as error:
        raise ConfigError(
            f"--state-dir: {directory} cannot be written ({error.strerror}); the journal of "
            "unanswered jobs is kept there"
        ) from None
    raise ConfigError(f"--state-dir: {MAX_BRIDGES} bridges use {directory} already")


def _peer_line(peer: Peer) -> dict[str, Any]:
    pem = peer.pem.decode("ascii") if peer.pem else ""
    return {"host": peer.address.host, "port": peer.address.port, "pem": pem}


def _taken_line(key: Key, taken: _Taken) -> dict[str, Any]:
    return {"taken": [*key, taken.pipeline, taken.at_s]}


def _encoded(lines: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _write_all(file: int, data: bytes) -> None:
    written = os.write(file, data)
    if written < len(data):
        raise OSError(errno.ENOSPC, f"took {written} of {len(data)} bytes")


def _sync_and_close(file: int) -> None:
    try:
        os.fdatasync(file)
    finally:
        os.close(file)
