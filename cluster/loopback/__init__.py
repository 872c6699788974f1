"""A development orchestrator: what a bridge is tested and demonstrated against.

It speaks an orchestrator's protocol to workers and a gateway's to callers, on one TLS port.
Wherever a worker's mistake would make the real orchestrator wait for 15 minutes, store an
empty file, panic or answer null, this one says so at once: to the worker that posted, to the
caller, in the log and in `LoopbackOrchestrator.faults`. It takes no payments and has no
business outside development.

    server.py          the orchestrator: routes, start and stop
    tls_server.py      hypercorn on a TLS port
    certificate.py     the certificate, as the real one makes it at every start
    asgi.py            requests and responses over ASGI
    grpc_framing.py    gRPC messages and statuses over ASGI
    registration.py    RegisterAIWorker: who may connect, and the stream of jobs
    workers.py         who is connected, with what capacity; selection
    jobs.py            jobs handed out and not yet answered
    ai_results.py      POST /aiResults
    answers.py         what an answer must look like
    documents.py       what the JSON in it must hold
    event_stream.py    what a streamed answer must look like
    gateway.py         the callers' routes
    parameters.py      callers' JSON and forms
    pipelines.py       the table of routes
    store.py           the files that workers and callers download
    multipart.py       multipart bodies, strictly
    content_type.py    the header of that name
    go_json.py         JSON as the real one reads and writes it
    faults.py          what workers did wrong
    misbehaviour.py    what the orchestrator does wrong, when it is told to
"""

from cluster.loopback.faults import Fault
from cluster.loopback.jobs import JobFailed, MediaAnswer, WorkerError
from cluster.loopback.server import LoopbackOrchestrator
from cluster.loopback.workers import Worker

__all__ = ["Fault", "JobFailed", "LoopbackOrchestrator", "MediaAnswer", "Worker", "WorkerError"]
