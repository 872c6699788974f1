"""What an orchestrator does wrong, when it is told to: `POST /misbehave`, the body a `Wrong`.

For tests of workers: what a broken, overloaded or hostile orchestrator does to the jobs that it
sends and to the answers that it gets. Its own books stay right, so that what becomes of each job
can be counted. It lasts until the next such request.
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import aclosing
from enum import StrEnum

from cluster.loopback.asgi import (
    BodyError,
    Head,
    Receive,
    Request,
    Response,
    Send,
    body_chunks,
    respond,
)
from cluster.loopback.tls_server import Connection
from cluster.protocol import lp_rpc_pb2 as pb

_LARGE_BYTES = 63 * 1024 * 1024
"""Almost the 64 MiB that a worker takes in one message."""

_GARBAGE_BYTES = 300


class Wrong(StrEnum):
    """The ways to misbehave."""

    NOTHING = "nothing"
    ANSWERS_500 = "answers get 500"
    ANSWERS_CUT = "answers are cut off"
    ANSWERS_GARBAGE = "answers get garbage"
    JOBS_TWICE = "jobs come twice"
    JOBS_GARBAGE = "jobs are garbage"
    JOBS_LARGE = "jobs are large"
    MESSAGES_GARBAGE = "messages are garbage"


class Misbehaviour:
    """Does nothing wrong until it is told to."""

    def __init__(self, *, connection: Callable[[str], Connection | None], max_bytes: int) -> None:
        """Takes who is at a peer, and how much of an answer is read."""
        self._connection = connection
        self._max_bytes = max_bytes
        self._wrong = Wrong.NOTHING

    async def change(self, request: Request) -> Response:
        """Handles `POST /misbehave`."""
        name = request.body.decode("utf-8", "replace")
        if name not in list(Wrong):
            return Response(status=400, body=f"want one of: {', '.join(Wrong)}\n".encode())
        self._wrong = Wrong(name)
        return Response(status=200, body=b"OK")

    @property
    def spoils_answers(self) -> bool:
        """Whether answers are for `take_answer`."""
        return self._wrong in (Wrong.ANSWERS_500, Wrong.ANSWERS_CUT, Wrong.ANSWERS_GARBAGE)

    async def take_answer(self, head: Head, receive: Receive, send: Send) -> None:
        """Mistreats an answer; the job goes on waiting for it."""
        wrong = self._wrong
        try:
            async with aclosing(body_chunks(receive, max_bytes=self._max_bytes)) as chunks:
                async for _ in chunks:
                    if wrong is Wrong.ANSWERS_CUT:
                        break
        except BodyError:
            return
        connection = self._connection(head.peer)
        if wrong is Wrong.ANSWERS_500 or connection is None:
            await respond(send, Response(status=500, body=b"misbehaving\n"))
            return
        if wrong is Wrong.ANSWERS_GARBAGE:
            connection.write(os.urandom(_GARBAGE_BYTES))
            await connection.drain()
        # Before the server sends a reply of its own because there was none.
        connection.cut()

    def messages(self, job: pb.NotifyAIJob) -> Sequence[bytes]:
        """What is written to a worker's stream for a job."""
        data = job.SerializeToString()
        match self._wrong:
            case Wrong.JOBS_TWICE:
                return [data, data]
            case Wrong.MESSAGES_GARBAGE:
                return [data, os.urandom(_GARBAGE_BYTES)]
            case Wrong.JOBS_GARBAGE:
                return [_with_request(job, os.urandom(_GARBAGE_BYTES))]
            case Wrong.JOBS_LARGE:
                padded = {**json.loads(job.AIJobData.requestData), "padding": "x" * _LARGE_BYTES}
                return [_with_request(job, json.dumps(padded).encode())]
            case _:
                return [data]


def _with_request(job: pb.NotifyAIJob, request_data: bytes) -> bytes:
    spoiled = pb.AIJobData(pipeline=job.AIJobData.pipeline, requestData=request_data)
    return pb.NotifyAIJob(taskId=job.taskId, AIJobData=spoiled).SerializeToString()
