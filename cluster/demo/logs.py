"""What the demo's processes say: in files beside the outputs, read back where it matters."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

SHOWN_LINES = 12
"""Of each log when something failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """One file a process."""

    models: Path
    orchestrator: Path
    worker: Path
    """One JSON object a line (`--log-json`), for whatever comes through our logger."""

    @classmethod
    def empty(cls, directory: Path) -> Self:
        """Returns logs in a directory, without those of an earlier run."""
        logs = cls(
            models=directory / "models.log",
            orchestrator=directory / "orchestrator.log",
            worker=directory / "worker.log",
        )
        for path in logs.paths:
            path.write_bytes(b"")
        return logs

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files in the order in which they are begun."""
        return self.models, self.orchestrator, self.worker

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The bridge's records of jobs (`bridge.JobRecord`), by task id."""
        return {
            str(record["job"]["task_id"]): record["job"]
            for record in self._records()
            if "job" in record
        }

    def failures(self) -> dict[str, str]:
        """The pipelines whose models do not load, with the reason, as `CapacityWatch` tells."""
        errors = (r["message"] for r in self._records() if r["level"] == "ERROR")
        return {message.split(" ", 1)[0]: message for message in errors}

    def problems(self) -> str:
        """The end of each log; of the worker's only what is no success, if there is that."""
        found = []
        for path in self.paths:
            lines = path.read_text(errors="replace").splitlines()
            if path == self.worker:
                lines = self.worker_problems() or lines
            if lines:
                found += ["", f"{path}:", *(f"  {line}" for line in lines[-SHOWN_LINES:])]
        return "\n".join(found)

    def worker_problems(self) -> list[str]:
        """The worker's warnings and errors."""
        return [
            f"{record['level']:<7} {record['message']}"
            for record in self._records()
            if record["level"] != "INFO"
        ]

    def _records(self) -> Iterator[dict[str, Any]]:
        for line in self.worker.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            # Else a library that writes past the logger, or a line that is being written.
            yield record if isinstance(record, dict) else {"level": "OUTPUT", "message": line}
