"""What workers did wrong, kept where tests can assert that there was nothing."""

import logging
from dataclasses import dataclass

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that a worker did wrong."""

    reason: str
    peer: str
    """`ip:port` of the connection on which it happened."""
    task_id: int | None = None


class FaultLog:
    """Collects faults; each is logged when it happens.

    Attributes:
        faults: What would make the real orchestrator wait for 15 minutes, store an empty file,
            panic or answer null.
        late: Answers to unknown or finished jobs, which the real one takes and ignores.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.faults: list[Fault] = []
        self.late: list[Fault] = []

    def add(self, reason: str, *, peer: str, task_id: int | None = None) -> None:
        """Records a fault."""
        _log.error("FAULT of the worker at %s, job %s: %s", peer, task_id, reason)
        self.faults.append(Fault(reason=reason, peer=peer, task_id=task_id))

    def add_late(self, *, peer: str, task_id: int) -> None:
        """Records an answer that nobody waits for."""
        _log.error("duplicate or unknown answer from %s: job %s", peer, task_id)
        self.late.append(Fault(reason="duplicate or unknown answer", peer=peer, task_id=task_id))
