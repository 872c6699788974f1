"""What became of each job: for the log, for metrics and for tests."""

import logging
from dataclasses import asdict, dataclass

from cluster.errors import JobError

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """What became of one job."""

    task_id: int
    """The orchestrator's; our own number of what came over HTTP."""
    pipeline: str
    over_http: bool = False
    """Whether somebody waited for it on a connection of his own."""
    model_id: str = ""
    outcome: str = "ok"
    """`ok`, or the error's text for the orchestrator."""
    kind: str = "ok"
    """`ok`, `cut_short` for a stream, `left` where nobody waits any more, or the error's."""
    attempts: int = 0
    """How often it was started on a replica."""
    waited_s: float | None = None
    """For a slot; None where it got none."""
    replica: str = ""
    compute_s: float = 0.0
    """In the replica."""
    total_s: float = 0.0
    """From the job's arrival to the acceptance of its answer."""
    delivered: bool = False

    def failed(self, error: JobError) -> None:
        """It is answered with this error."""
        self.outcome, self.kind = error.network_text(self.pipeline), error.kind


def log_record(record: JobRecord) -> None:
    """One line a job; its fields are in the JSON log."""
    logger.log(
        logging.INFO if record.outcome == "ok" and record.delivered else logging.WARNING,
        "%s %d %s %s: %s, %.2f s (%.2f s in the replica%s)%s",
        "request" if record.over_http else "job",
        record.task_id,
        record.pipeline,
        record.model_id or "-",
        record.outcome,
        record.total_s,
        record.compute_s,
        f" {record.replica}" if record.replica else "",
        "" if record.delivered else ", NOT DELIVERED",
        extra={"job": asdict(record)},
    )
