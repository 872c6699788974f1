"""`livepeer-ray demo`: the whole path on this machine, with tiny models.

Everything is what an operator runs, in processes of its own; only the models' weights are
random, so the pictures are noise, and the orchestrator is the one that ships for development.
What the processes say goes to files beside the outputs, and to the terminal when one fails.
"""

import asyncio
import contextlib
import json
import secrets
import signal
import socket
import sys
import tempfile
import textwrap
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from cluster import programs
from cluster.bridge_settings import Register
from cluster.demo.gateway import Output, send
from cluster.demo.inputs import picture, sound
from cluster.demo.known import runner_slots, runners, slots
from cluster.demo.logs import Logs
from cluster.demo.page import write_page
from cluster.demo.samples import EVERY_PIPELINE, INPUT_FILES, PROMPTS, Sample
from cluster.errors import ConfigError
from cluster.programs import ProgramFailed

READY_TIMEOUT_S = 600.0
"""For all models to load: nine took 140 s on two cores with much else to do."""

GPU_SHARE = 0.1
"""Of one GPU, for each replica: where there is one, all tiny models share it."""

COLUMN = 66
"""Where the seconds stand."""

TEXT_SHOWN, ERROR_SHOWN = 40, 90
"""Characters of a text and of an error in the table; the page has them whole."""


def run(output: Path, *, every_pipeline: bool, register: Register) -> int:
    """Runs the demo and returns the exit status.

    Args:
        output: a directory for outputs, logs and index.html.
        every_pipeline: all nine, one after the other, instead of text-to-image alone.
        register: how the worker registers; a live runner's requests go straight to it.

    Raises:
        ConfigError: the directory cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: {output} cannot be made ({error.strerror})") from None
    logs = Logs.empty(output)
    # As at Ctrl-C, everything that was started is ended in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    try:
        outputs = asyncio.run(_demo(output, logs, every_pipeline=every_pipeline, register=register))
    except (ProgramFailed, aiohttp.ClientError, TimeoutError, OSError) as error:
        print(f"\ndemo failed: {str(error) or type(error).__name__}", file=sys.stderr)
        print(logs.problems(), file=sys.stderr)
        return 1
    # The worker has ended, so that its log has every job.
    print("\n" + "\n".join(table(outputs, logs.jobs())))
    print(f"\nside by side: {write_page(output, outputs)}")
    print(f"logs: {', '.join(map(str, logs.paths))}")
    seconds = time.monotonic() - began
    if failed := sum(1 for one in outputs if one.error):
        print(f"\n{failed} of {len(outputs)} failed; {logs.worker} has", file=sys.stderr)
        print("\n".join(f"  {line}" for line in logs.worker_problems()), file=sys.stderr)
        return 1
    print(f"\ndone in {seconds:.0f} s, everything is shut down again")
    return 0


def table(outputs: Sequence[Output], jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the lines of a table of outputs.

    Args:
        outputs: in the order of the lines.
        jobs: the bridge's records by task id; one that is missing leaves its columns empty.
    """
    rows = [("PIPELINE", "SECONDS", "IN REPLICA", "OUTPUT")]
    for output in outputs:
        pipeline = output.sample.pipeline
        if output.path is None:
            rows.append((pipeline, "failed", "", textwrap.shorten(output.error, ERROR_SHOWN)))
            continue
        job = jobs.get(output.task_id)
        inside = f"{job['compute_s']:.2f} {job['replica']}" if job else ""
        made = f"{output.path}, {output.size}"
        if output.text:
            made += f": {output.text[:TEXT_SHOWN]!r}"
        rows.append((pipeline, f"{output.seconds:.2f}", inside, made))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]] + [0]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


async def _demo(
    output: Path, logs: Logs, *, every_pipeline: bool, register: Register
) -> list[Output]:
    samples = EVERY_PIPELINE if every_pipeline else PROMPTS
    print("A job's whole path on this machine: orchestrator, bridge, Ray Serve, replica.")
    print("The models are tiny and their weights are random: what they make is noise.\n")
    secret = secrets.token_hex(16)
    async with contextlib.AsyncExitStack() as stack:
        models = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="livepeer-ray-demo-")))
        with _step("writing tiny models"):
            await _write_models(models, samples, logs, replicas=1 if every_pipeline else 2)
        for field, make in (("image", picture), ("audio", sound)):
            if any(sample.file == field for sample in samples):
                (output / INPUT_FILES[field]).write_bytes(make())
        with _step("starting an orchestrator"):
            orchestrator = await stack.enter_async_context(
                programs.orchestrator(secret=secret, log=logs.orchestrator)
            )
            url = orchestrator.url
        worker = await stack.enter_async_context(_worker(url, models, secret, logs, register))
        connector = aiohttp.TCPConnector(ssl=False)  # the certificate is seconds old
        gateway = await stack.enter_async_context(aiohttp.ClientSession(url, connector=connector))
        failures = await _loaded(gateway, samples, worker, logs, register)

        async def ask(sample: Sample) -> Output:
            if reason := failures.get(sample.pipeline):
                return Output(sample=sample, error=reason)
            base = "" if register.as_worker else (await runners(gateway))[sample.pipeline].base
            return await send(gateway, sample, output, base=base)

        if every_pipeline:
            with _step("sending a request to each, one after the other"):
                return [await ask(sample) for sample in samples]
        with _step(f"sending {len(samples)} prompts at once, as a gateway would"):
            return await asyncio.gather(*map(ask, samples))


async def _write_models(
    directory: Path, samples: Sequence[Sample], logs: Logs, *, replicas: int
) -> None:
    """Writes the models of these samples, and an aiModels.json that gives each its replicas."""
    only = [f"--pipeline={pipeline}" for pipeline in Counter(s.pipeline for s in samples)]
    process = await programs.start("tiny-models", str(directory), *only, log=logs.models)
    try:
        if await process.wait() != 0:
            raise ProgramFailed(f"livepeer-ray tiny-models ended with status {process.returncode}")
    finally:
        await programs.end(process)
    ai_models = directory / "aiModels.json"
    entries = json.loads(ai_models.read_text())
    for entry in entries:
        entry["capacity"] = replicas
        entry.setdefault("ray", {})["num_gpus"] = GPU_SHARE
    ai_models.write_text(json.dumps(entries))


@contextlib.asynccontextmanager
async def _worker(
    url: str, models: Path, secret: str, logs: Logs, register: Register
) -> AsyncIterator[Process]:
    """`livepeer-ray start` in a process, on a Ray cluster of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await programs.start(
        "start",
        *("--ray-address", "local"),
        *("--orch-addr", url),
        # It shows the orchestrator's way, and must not stop at a port that is taken.
        *("--http", "none"),
        *("--register", register),
        *("--runner-listen", f"127.0.0.1:{port}"),
        *("--ai-models", str(models / "aiModels.json")),
        *("--ai-models-dir", str(models)),
        "--log-json",
        log=logs.worker,
        environment={
            "LIVEPEER_RAY_ORCH_SECRET": secret,
            # Nothing that the demo leaves unanswered is worth keeping.
            "LIVEPEER_RAY_STATE_DIR": str(models / "state"),
        },
    )
    try:
        yield process
    finally:
        with _step("shutting down"):
            await programs.end(process)


async def _loaded(
    gateway: aiohttp.ClientSession,
    samples: Sequence[Sample],
    worker: Process,
    logs: Logs,
    register: Register,
) -> dict[str, str]:
    """Waits until the orchestrator knows of a slot for every sample, or knows that none comes.

    Returns:
        The pipelines without one, and why.

    Raises:
        ProgramFailed: the worker ended.
    """
    print("  starting the worker: Ray, a Serve application for each model, the bridge", flush=True)
    began = time.monotonic()
    missing = Counter(sample.pipeline for sample in samples)
    failures: dict[str, str] = {}
    ended = asyncio.create_task(worker.wait())
    try:
        while missing:
            await asyncio.wait({ended}, timeout=0.5)
            if ended.done():
                raise ProgramFailed(f"livepeer-ray start ended with status {ended.result()}")
            known = await (slots if register.as_worker else runner_slots)(gateway)
            seconds = time.monotonic() - began
            broken = logs.failures()
            for pipeline in tuple(missing):
                if known.get(pipeline, 0) >= missing[pipeline]:
                    _line(f"  {pipeline} is ready", seconds)
                elif reason := broken.get(pipeline):
                    failures[pipeline] = reason
                    _line(f"  {pipeline} DOES NOT LOAD", seconds)
                elif seconds > READY_TIMEOUT_S:
                    failures[pipeline] = f"not ready after {READY_TIMEOUT_S:.0f} s"
                else:
                    continue
                del missing[pipeline]
    finally:
        ended.cancel()
    return failures


@contextlib.contextmanager
def _step(text: str) -> Iterator[None]:
    """Says what is being done and, when it is done, how long it took."""
    print(f"  {text} ".ljust(COLUMN), end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    print(f"{time.monotonic() - began:6.1f} s", flush=True)


def _line(text: str, seconds: float) -> None:
    print(f"  {text} ".ljust(COLUMN) + f"{seconds:6.1f} s", flush=True)
