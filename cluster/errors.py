"""The one error tree of the project.

    LivepeerRayError                      deployments/errors.py
    ├── ReplicaError                      raised in a replica; .http_status
    │   ├── BadRequest                      400
    │   │   ├── UnsupportedMedia            415
    │   │   └── OutOfMemory                 with all of its GPU's memory
    │   ├── InferenceFailed                 500
    │   └── ReplicaBroken                   503
    ├── Refused                           deployments/ingress/errors.py; .http_status
    │   ├── WrongModel                      400
    │   ├── Unauthorized                    401
    │   ├── NotServed                       404
    │   ├── TooLarge                        413
    │   └── Overloaded                      503
    │       └── ReplicaGone                 another one can run the request
    ├── ModelError                        a replica that cannot load
    │   ├── ModelNotFound
    │   └── ModelBroken
    ├── JobError                          how a job is answered; .kind, .network_text()
    │   ├── JobRejected                     400  nobody could serve it
    │   ├── InsufficientCapacity            503  somebody else should
    │   │   └── ReplicaLost                       or another replica of ours; .dead
    │   └── JobFailed                       500  our fault
    │       ├── DeadlinePassed              504
    │       └── ContainerRefused                 a container's own status
    ├── ConfigError                       the operator has to change something; exit status 2
    │   └── AIModelsError                   .problems
    ├── ContainerError                    an external container
    │   ├── NotHealthy                      a check that failed
    │   │   └── NoAnswer                      in time
    │   └── ReportedError                   in the middle of a stream
    ├── ClusterUnreachable                no Ray cluster; exit status 4, worth another try
    ├── DownloadFailed                    a model that could not be fetched
    ├── BenchFailed                       `livepeer-ray bench` has no figures
    ├── ProgramFailed                     a process of ours that was started and does not work
    └── RegistrationError                 this attempt to register failed; retried unless fatal
        ├── OrchestratorUnreachable
        ├── OrchestratorRefused             the stream was ended without a word
        ├── FingerprintMismatch
        └── InvalidSecret                   fatal; exit status 3

Each `JobError` carries the HTTP status and the words that the network acts on, so that nobody
composes either by hand. What gateways do with the words: go-livepeer, server/ai_process.go.
"""

from collections.abc import Sequence
from typing import ClassVar

from deployments.errors import (
    BadRequest,
    InferenceFailed,
    LivepeerRayError,
    ModelBroken,
    ModelError,
    ModelNotFound,
    ReplicaBroken,
    ReplicaError,
)

__all__ = [
    "AIModelsError",
    "BadRequest",
    "ClusterUnreachable",
    "ConfigError",
    "ContainerError",
    "ContainerRefused",
    "DeadlinePassed",
    "DownloadFailed",
    "FingerprintMismatch",
    "InferenceFailed",
    "InsufficientCapacity",
    "InvalidSecret",
    "JobError",
    "JobFailed",
    "JobRejected",
    "LivepeerRayError",
    "ModelBroken",
    "ModelError",
    "ModelNotFound",
    "NoAnswer",
    "NotHealthy",
    "OrchestratorRefused",
    "OrchestratorUnreachable",
    "RegistrationError",
    "ReplicaBroken",
    "ReplicaError",
    "ReplicaLost",
    "ReportedError",
]


MAX_REASON_CHARS = 1_000
"""What is longer quotes the request, which its sender knows."""


class JobError(LivepeerRayError):
    """A job that is answered with an error."""

    http_status: int
    kind: ClassVar[str]
    """For metrics."""
    _text: ClassVar[str]

    def network_text(self, pipeline: str) -> str:
        """Returns the words for the orchestrator, one line; it is logged as it is."""
        # What a stranger sent may be quoted in it, and a terminal may obey it.
        printable = "".join(char if char.isprintable() else " " for char in str(self))
        why = " ".join(printable.split())[:MAX_REASON_CHARS]
        return self._text.format(pipeline=pipeline, status=self.http_status, why=why)


class JobRejected(JobError):
    """Nobody could serve this job: the caller gets the reason and no other worker is tried."""

    http_status = 400
    kind = "rejected"
    _text = "{pipeline} container returned 400: {why}"


class InsufficientCapacity(JobError):
    """Not here, not now: another orchestrator is tried and ours is not suspended."""

    http_status = 503
    kind = "insufficient_capacity"
    _text = "insufficient capacity: {why}"


class ReplicaLost(InsufficientCapacity):
    """The replica went away under the job, which another one can run."""

    def __init__(self, message: str, *, dead: str = "") -> None:
        """Takes what happened.

        Args:
            message: for logs and, where nobody else runs the job, for the orchestrator.
            dead: names the death of the replica, which the job itself may have caused, and is the
                same for every job that saw it; empty where its node is gone or does not answer.
        """
        super().__init__(message)
        self.dead = dead


class JobFailed(JobError):
    """Our failure: another orchestrator is tried and the gateway suspends ours."""

    http_status = 500
    kind = "failed"
    _text = "{pipeline} container returned 500: {why}"


class DeadlinePassed(JobFailed):
    """The job was not finished within its deadline."""

    http_status = 504
    kind = "deadline_passed"


class ContainerRefused(JobFailed):
    """An external container refused the job in a way of its own, which is passed on."""

    _text = "{pipeline} container returned {status}: {why}"

    def __init__(self, message: str, *, http_status: int) -> None:
        """Takes the container's words and its status."""
        super().__init__(message)
        self.http_status = http_status


class ConfigError(LivepeerRayError):
    """Flags, environment or files that the operator has to change."""


class AIModelsError(ConfigError):
    """Everything that is wrong with an aiModels.json, found in one pass."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Takes the problems, each naming file, entry and field."""
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ContainerError(LivepeerRayError):
    """What an external container does in place of working; the text is for operators."""


class NotHealthy(ContainerError):
    """A health check failed."""


class NoAnswer(NotHealthy):
    """It did not answer in time: it hangs, or it is busy."""


class ReportedError(ContainerError):
    """It ended a stream with an error; the text is the container's."""


class ClusterUnreachable(LivepeerRayError):
    """There is no Ray cluster, or it does not let us in. It may be restarting."""


class DownloadFailed(LivepeerRayError):
    """A model could not be fetched from the hub."""


class RegistrationError(LivepeerRayError):
    """An attempt to register with an orchestrator that failed."""


class OrchestratorUnreachable(RegistrationError):
    """No connection, or what answered does not speak the protocol."""


class OrchestratorRefused(RegistrationError):
    """The orchestrator ended the stream at once, without an error: the version is too old."""


class FingerprintMismatch(RegistrationError):
    """The orchestrator's certificate is not the pinned one."""


class InvalidSecret(RegistrationError):
    """The orchestrator does not accept the secret."""
