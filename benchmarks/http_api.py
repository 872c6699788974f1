"""What Serve costs the HTTP API: ours against the same application on a bare uvicorn.

    python -m benchmarks.http_api [--json FILE] [--haproxy]

A replica answers every request with one small picture at once, so that a request's time is what
is around the model. Ours is Serve's proxy, the ingress' process, the handle and the replica's
process; the other (benchmarks/bare_http.py) has application and replica in one process. Blocks of
both alternate. It is bound to be faster: the ratio says what a cluster costs, per request.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
if "--haproxy" in sys.argv:  # Ray reads it when it is imported
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"

import aiohttp
import ray

from benchmarks import machine
from benchmarks.photo import photo
from benchmarks.rig import HTTP_MODEL, BenchmarkFailed, deploy
from cluster import logs
from cluster.errors import LivepeerRayError
from cluster.http_api import HTTPSettings
from deployments.ingress.config import Token

ROUNDS = 3
REQUESTS = {1: 60, 16: 200, 64: 400}
"""By concurrency; in every round one block of each path."""

SIDE = 64
"""Of the picture: an answer of some kilobytes."""

READY_TIMEOUT_S = 120.0
EXIT_FAILED = 2

TOKEN = "the-benchmark's-own-token"  # noqa: S105 (of a server that lives for minutes)
BODY = {"prompt": "a", "width": SIDE, "height": SIDE, "safety_check": False}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some requests at once."""

    times_ms: tuple[float, ...]
    took_s: float


Blocks = dict[tuple[str, int], list[Block]]
"""By path and concurrency."""


def main() -> int:
    """Measures, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.http_api", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--haproxy", action="store_true", help="HAProxy instead of Serve's proxy")
    arguments = parser.parse_args()
    logs.configure(as_json=False)
    where = machine.describe()
    ours, bare = _free_port(), _free_port()
    try:
        with tempfile.TemporaryDirectory(prefix="livepeer-ray-bench-") as models_dir:
            print("starting a local Ray cluster and a bare server", flush=True)
            http = HTTPSettings(host="127.0.0.1", port=ours, tokens=(Token.of(TOKEN),))
            deploy(
                photo()[:SIDE, :SIDE].copy(),
                models_dir=Path(models_dir),
                model=HTTP_MODEL,
                http=http,
            )
            server = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.bare_http", models_dir, str(bare)]
            )
            try:
                blocks = asyncio.run(_measure({"ours": ours, "bare uvicorn": bare}))
            finally:
                server.terminate()
                server.wait()
    except LivepeerRayError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        ray.shutdown()
    report = _report(blocks, where, proxy="HAProxy" if arguments.haproxy else "Serve's proxy")
    print(_table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


async def _measure(ports: dict[str, int]) -> Blocks:
    blocks: Blocks = {(path, jobs): [] for jobs in REQUESTS for path in ports}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(
        headers=headers, connector=aiohttp.TCPConnector(limit=0)
    ) as http:
        urls = {path: f"http://127.0.0.1:{port}" for path, port in ports.items()}
        for url in urls.values():
            await _ready(http, url)
            await _block(http, url, concurrency=16, requests=64)
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", flush=True)
            for concurrency, requests in REQUESTS.items():
                for path, url in urls.items():
                    block = await _block(http, url, concurrency=concurrency, requests=requests)
                    blocks[path, concurrency].append(block)
    return blocks


async def _ready(http: aiohttp.ClientSession, url: str) -> None:
    ends_at = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < ends_at:
        try:
            async with http.get(f"{url}/health") as response:
                if response.status == 200 and (await response.json())["status"] == "OK":
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.2)
    raise BenchmarkFailed(f"{url} did not start within {READY_TIMEOUT_S:.0f} s")


async def _block(
    http: aiohttp.ClientSession, url: str, *, concurrency: int, requests: int
) -> Block:
    left = iter(range(requests))
    times_ms: list[float] = []

    async def ask() -> None:
        for _ in left:
            began = time.perf_counter()
            async with http.post(f"{url}/text-to-image", json=BODY) as response:
                answer = await response.read()
            if response.status != 200:
                raise BenchmarkFailed(f"{url}: {response.status} {answer[:200]!r}")
            times_ms.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(concurrency)))
    return Block(times_ms=tuple(times_ms), took_s=time.perf_counter() - began)


def _report(blocks: Blocks, where: dict[str, Any], *, proxy: str) -> dict[str, Any]:
    """The figures as JSON."""
    figures: dict[str, dict[str, Any]] = {}
    for (path, concurrency), some in blocks.items():
        times_ms = [time_ms for block in some for time_ms in block.times_ms]
        figures.setdefault(path, {})[str(concurrency)] = {
            "p50_ms": round(statistics.median(times_ms), 2),
            "p95_ms": round(statistics.quantiles(times_ms, n=20, method="inclusive")[-1], 2),
            "per_s": round(len(times_ms) / sum(block.took_s for block in some), 1),
            "requests": len(times_ms),
        }
    ours, bare = figures["ours"], figures["bare uvicorn"]
    return {
        "machine": where,
        "proxy": proxy,
        "figures": figures,
        "ratio": {
            concurrency: {
                name: round(ours[concurrency][name] / bare[concurrency][name], 2)
                for name in ("p50_ms", "p95_ms", "per_s")
            }
            for concurrency in ours
        },
    }


def _table(report: dict[str, Any]) -> str:
    """The report for people."""
    where = report["machine"]
    ours, bare = report["figures"]["ours"], report["figures"]["bare uvicorn"]
    rows: list[Sequence[str]] = [("concurrency", "", "ours", "bare uvicorn", "ratio")]
    for concurrency, ratios in report["ratio"].items():
        for name, unit in (("p50_ms", "ms"), ("p95_ms", "ms"), ("per_s", "/s")):
            cells = (f"{each[concurrency][name]:.1f} {unit}" for each in (ours, bare))
            label = name.removesuffix("_ms").replace("per_s", "rate")
            rows.append((concurrency, label, *cells, f"{ratios[name]:.2f}"))
    return "\n".join(
        [
            "",
            f"Per request over HTTP, through {report['proxy']}:",
            "",
            *("  ".join(f"{cell:>12}" for cell in row) for row in rows),
            "",
            f"machine: {where['cores']} cores of {where['cpu']}, {where['memory_gib']} GiB, "
            f"{where['system']}, load {where['load_1min_before']} before the run",
            f"Python {where['python']}, ray {where['ray']}",
        ]
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
