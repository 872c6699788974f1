"""What can go wrong in a replica, and the root of the project's one error tree.

The whole tree is drawn in `cluster/errors.py`. Each error takes one message, so that it
survives being pickled on its way from the replica to the caller.
"""

from typing import ClassVar


class LivepeerRayError(Exception):
    """Every error that this project raises on purpose.

    Its text may quote what a stranger sent, and always can be encoded: JSON can carry half a
    surrogate pair, at which Ray and the wire would fail in the middle of reporting the error.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message.encode("utf-8", "replace").decode("utf-8"))


class ReplicaError(LivepeerRayError):
    """A request that a replica did not serve; `http_status` is what the runner API answers."""

    http_status: ClassVar[int] = 500


class BadRequest(ReplicaError):
    """Nobody could serve this request: the caller has to change it."""

    http_status: ClassVar[int] = 400


class UnsupportedMedia(BadRequest):
    """A file that is not what the pipeline reads."""

    http_status: ClassVar[int] = 415


class OutOfMemory(BadRequest):
    """A request that is too large for this GPU even when it has all of its memory."""


class InferenceFailed(ReplicaError):
    """The model raised, or ran out of memory; another replica may fare better."""


class ReplicaBroken(ReplicaError):
    """This replica can serve nothing any more and is about to be replaced; the request may be fine.

    Serve notices at its third health check, and sends requests here until then.
    """

    http_status: ClassVar[int] = 503


class ModelError(LivepeerRayError):
    """A model that cannot be loaded; the message names it and the remedy."""


class ModelNotFound(ModelError):
    """The model's files are not below the models directory."""


class ModelBroken(ModelError):
    """The model's files are there and do not load."""
