"""`livepeer-ray bench`: how fast a model is on this cluster, without an orchestrator.

The model is deployed as `livepeer-ray start` deploys it and asked by the handle that the bridge
asks by. A cluster that serves the model already is used as it is; one that serves other models
alone is left alone: deploying would take GPUs from them.
"""

import asyncio
import json
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve

from cluster import logs, machine, ray_cluster, serve_client
from cluster.ai_models import AIModel
from cluster.ai_models_entry import parse_entry
from cluster.backends.ray_serve import RayBackend
from cluster.bench.chart import write_chart
from cluster.bench.driver import Level, measure
from cluster.bench.options import NO_FLAGS, BenchOptions
from cluster.bench.report import Variant, document, table
from cluster.bench.workload import Workload
from cluster.capacity import ModelStatus
from cluster.errors import ClusterUnreachable, ConfigError, LivepeerRayError
from cluster.placement import UNBOUNDED, Room, place
from cluster.serve_config import app_name, serve_config
from cluster.settings import Device
from deployments.vitals import Vitals

LOAD_TIMEOUT_S = 1800.0
"""Large models come from slow disks, and Parler-TTS brings an environment of its own."""

LOOK_S = 0.1

EXIT_FAILED = 1


class BenchFailed(LivepeerRayError):
    """There are no figures; the text says why."""


def run(options: BenchOptions, *, ray_address: str, models_dir: Path, device: Device) -> int:
    """Measures, prints the table, and returns the exit status.

    Raises:
        ConfigError: a flag makes no sense, or the cluster serves other models.
        ClusterUnreachable: there is no cluster at an address that was given.
    """
    logs.configure(as_json=False)
    models = {flags: _model(options, flags) for flags in options.flags or (NO_FLAGS,)}
    workload = Workload(
        pipeline=options.pipeline,
        model_id=options.model_id,
        parameters=options.parameters,
        file=_read(options.file),
        batch=options.batch,
    )
    facts = {
        "machine": machine.describe(),
        "pipeline": options.pipeline,
        "model_id": options.model_id,
        "request": workload.parameters,
        "runs": options.runs,
    }
    local = ray_cluster.join(ray_address)
    try:
        with ray_cluster.reachable():
            served = serve_client.details()["applications"].keys()
            variants = [
                _measure(options, flags, model, workload, models_dir=models_dir, device=device)
                for flags, model in to_deploy(options, models, served=served).items()
            ]
    except (ConfigError, ClusterUnreachable):
        raise
    except LivepeerRayError as error:
        print(f"livepeer-ray: no figures: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        if local:
            ray.shutdown()
    report = document(variants, work=workload.work, facts=facts)
    print(table(report))
    try:
        if options.json_file:
            options.json_file.write_text(json.dumps(report, indent=2) + "\n")
        if options.chart_file:
            write_chart(report, options.chart_file)
    except OSError as error:
        raise ConfigError(f"--json, --chart: {error}") from None
    return 0


def _model(options: BenchOptions, flags: str) -> AIModel:
    """The model by the rules of an aiModels.json, of which it could be the only entry."""
    entry = {
        "pipeline": options.pipeline,
        "model_id": options.model_id,
        "warm": True,
        "optimization_flags": {} if flags == NO_FLAGS else {flags: True},
        "ray": dict(options.ray_options),
    }
    parsed = parse_entry(entry)
    if parsed.model is None or parsed.warnings:
        raise ConfigError("; ".join((*parsed.problems, *parsed.warnings)))
    return parsed.model


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--input: {path}: {error.strerror}") from None


def to_deploy(
    options: BenchOptions, models: Mapping[str, AIModel], *, served: Collection[str]
) -> Mapping[str, AIModel | None]:
    """What to deploy by the name of its flags; None for what the cluster serves already.

    Args:
        options: what to measure.
        models: the same model by the name of its flags.
        served: names of the cluster's applications.

    Raises:
        ConfigError: the cluster serves something else, or was to be changed.
    """
    if not served:
        return models
    name = app_name(next(iter(models.values())).key)
    if name not in served:
        raise ConfigError(
            f"--ray-address: this cluster serves {', '.join(sorted(served))}; to measure another "
            "model, add it to their aiModels.json, or use a cluster of its own: --ray-address local"
        )
    if options.flags or options.ray_options:
        raise ConfigError(
            "--flags, --ray: this cluster serves the model already, and is not changed; leave "
            "them out, or use a cluster of its own: --ray-address local"
        )
    return {"as deployed": None}


def _measure(
    options: BenchOptions,
    flags: str,
    model: AIModel | None,
    workload: Workload,
    *,
    models_dir: Path,
    device: Device,
) -> Variant:
    """Deploys the model where it is not, measures it, and takes it away again."""
    key = _model(options, NO_FLAGS).key
    _say(f"{key}, {flags}: " + ("loading" if model else "as the cluster serves it"))
    load_s: float | None = None
    try:
        if model is not None:
            load_s = _deploy(model, models_dir=models_dir, device=device)
        vitals, levels = asyncio.run(_drive(options, workload))
        application = serve_client.details()["applications"][app_name(key)]
        status = serve_client.application_status(application, room=Room(None))
        (deployment,) = application["deployments"].values()
        return Variant(
            flags=flags,
            replicas=status.running,
            slots=deployment["deployment_config"]["max_ongoing_requests"],
            load_s=load_s,
            vitals=vitals,
            levels=levels,
        )
    finally:
        if model is not None:
            serve.delete(app_name(key))


async def _drive(options: BenchOptions, workload: Workload) -> tuple[Vitals, list[Level]]:
    key = _model(options, NO_FLAGS).key
    levels = await measure(
        RayBackend(), key, workload, levels=options.concurrency, runs=options.runs, say=_say
    )
    handle: Any = await asyncio.to_thread(serve.get_app_handle, app_name(key))
    vitals: Vitals = await handle.vitals.remote()
    return vitals, levels


def _deploy(model: AIModel, *, models_dir: Path, device: Device) -> float:
    """Deploys a model on a cluster with nothing else; returns the seconds until it runs.

    Raises:
        BenchFailed: it does not.
    """
    gpus = sum(node.get("GPU", 0) for node in ray_cluster.node_resources())
    config = serve_config(
        place([model], supply=UNBOUNDED), models_dir=models_dir, gpus=device.gpus(gpus)
    )
    began = time.monotonic()
    serve_client.deploy(config)
    while (seconds := time.monotonic() - began) < LOAD_TIMEOUT_S:
        status = serve_client.model_status((model,)).get(model.key, ModelStatus(state=""))
        if status.failed:
            raise BenchFailed(status.message)
        if status.running:
            return seconds
        time.sleep(LOOK_S)
    raise BenchFailed(f"{model.key} does not run after {LOAD_TIMEOUT_S:.0f} s: {status.message}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
