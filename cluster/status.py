"""What a worker is doing, joined from Serve, Ray and the bridge: a document, and how it is shown.

The document is what `livepeer-ray status --json` prints. What only the bridge knows is null
where no bridge answers.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cluster.serve_config import model_of
from cluster.supply import gpu_node
from deployments.model_args import DEPLOYMENT
from deployments.replica_states import AT_WORK, COMING

Document = dict[str, Any]


def document(
    *,
    applications: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
    bridge: Mapping[str, Any] | None,
) -> Document:
    """Joins the parts.

    Args:
        applications: Serve's, as the controller tells of them.
        nodes: the machines that are alive, as `ray_cluster.nodes` tells of them.
        bridge: what a bridge answers to `GET /state`; None without one.
    """
    models = [model for name, app in applications.items() if (model := _model(name, app))]
    return {
        "models": _with_bridge(models, bridge),
        "containers": None if bridge is None else bridge["containers"],
        "nodes": [_node(node, applications) for node in nodes],
        "orchestrators": None if bridge is None else bridge["registrations"],
    }


def _model(name: str, application: Mapping[str, Any]) -> Document | None:
    """One of our applications; None for somebody else's."""
    key = model_of(name)
    if key is None:
        return None
    found: Document = {
        **key._asdict(),
        "state": _text(application["status"]),
        "message": application["message"],
        "warm": None,
        "wanted": 0,
        "running": 0,
        "starting": 0,
        "slots": 0,
    }
    # Serve shows no deployment for a moment while it rebuilds an application.
    if deployment := application["deployments"].get(DEPLOYMENT):
        config = deployment["deployment_config"]
        scaling = config.get("autoscaling_config")
        states = [_text(replica["state"]) for replica in deployment["replicas"]]
        running = sum(state in AT_WORK for state in states)
        found |= {
            "message": deployment["message"] or application["message"],
            "warm": bool(scaling["min_replicas"] if scaling else config["num_replicas"]),
            "wanted": deployment["target_num_replicas"],
            "running": running,
            "starting": sum(state in COMING for state in states),
            "slots": running * config["max_ongoing_requests"],
        }
    return found


def _with_bridge(models: list[Document], bridge: Mapping[str, Any] | None) -> list[Document]:
    """Adds what the bridge knows, and the models that it has and Serve has not."""
    if bridge is None:
        return [{**model, "in_flight": None, "advertised": None} for model in models]
    served = {_key(model): model for model in bridge["models"]}
    external = set(map(_key, bridge["containers"]))
    advertised: dict[tuple[str, str], int] = {}
    for registration in bridge["registrations"]:
        for model in registration["advertised"]:
            advertised[_key(model)] = max(advertised.get(_key(model), 0), model["slots"])
    known = {_key(model) for model in models}
    absent: list[Document] = [
        {
            "pipeline": model["pipeline"],
            "model_id": model["model_id"],
            "state": "EXTERNAL" if key in external else "NOT_DEPLOYED",
            "message": "",
            "warm": model["warm"],
            "wanted": 0,
            "running": 0,
            "starting": 0,
            "slots": model["slots"],
        }
        for key, model in served.items()
        if key not in known
    ]
    return [
        {
            **model,
            "in_flight": served[_key(model)]["in_flight"] if _key(model) in served else None,
            "advertised": advertised.get(_key(model), 0),
        }
        for model in models + absent
    ]


def _node(node: Mapping[str, Any], applications: Mapping[str, Any]) -> Document:
    replicas = [
        {
            **key._asdict(),
            "state": _text(replica["state"]),
            "gpus": deployment["deployment_config"]["ray_actor_options"].get("num_gpus", 0),
        }
        for name, application in applications.items()
        if (key := model_of(name)) and (deployment := application["deployments"].get(DEPLOYMENT))
        for replica in deployment["replicas"]
        # A replica that has no machine yet has no such field.
        if replica.get("node_id") == node["NodeID"]
    ]
    return {
        "id": node["NodeID"],
        "address": node["NodeManagerAddress"],
        "hostname": node["NodeManagerHostname"],
        "draining": node["Draining"],
        "gpus": node["Resources"].get("GPU", 0),
        "gpu_type": gpu_node(node["Resources"]).accelerator_type,
        "gpus_taken": sum(replica["gpus"] for replica in replicas),
        "replicas": replicas,
    }


def _key(model: Mapping[str, Any]) -> tuple[str, str]:
    return model["pipeline"], model["model_id"]


def _text(state: Any) -> str:
    """Serve's enums, which arrive as members or as their text."""
    return str(getattr(state, "value", state))


def table(status: Document) -> str:
    """Returns the document as people read it."""
    lines = _aligned(
        ("PIPELINE", "MODEL", "WARM", "REPLICAS", "SLOTS", "IN FLIGHT", "ADVERTISED", "STATE"),
        [_model_row(model) for model in status["models"]],
    )
    if status["containers"]:
        heading = ("CONTAINER", "MODEL", "SLOTS", "IN FLIGHT", "RUNNER", "GPUS", "STATE")
        lines += ["", *_aligned(heading, map(_container_row, status["containers"]))]
    lines += ["", *_aligned(("NODE", "GPUS", "REPLICAS"), map(_node_row, status["nodes"]))]
    if status["orchestrators"] is not None:
        rows = [
            (
                registration["orchestrator"],
                registration["way"],
                "registered" if registration["registered"] else "not registered",
                registration["detail"],
            )
            for registration in status["orchestrators"]
        ]
        lines += ["", *_aligned(("ORCHESTRATOR", "AS", "STATE", ""), rows)]
    return "\n".join(lines)


def _model_row(model: Document) -> tuple[str, ...]:
    replicas = f"{model['running']} of {model['wanted']}"
    if model["starting"]:
        replicas += f", {model['starting']} starting"
    state = model["state"]
    if state in ("DEPLOY_FAILED", "UNHEALTHY") and model["message"]:
        # The last line is the exception; ours are one line, for operators.
        reason = model["message"].strip().splitlines()[-1]
        state += f": {reason.removeprefix('deployments.errors.')}"
    return (
        model["pipeline"],
        model["model_id"],
        {True: "yes", False: "no", None: "?"}[model["warm"]],
        replicas,
        str(model["slots"]),
        _number(model["in_flight"]),
        _number(model["advertised"]),
        state,
    )


def _container_row(container: Document) -> tuple[str, ...]:
    return (
        container["url"],
        f"{container['pipeline']} {container['model_id']}",
        str(container["slots"]),
        str(container["in_flight"]),
        container["runner_version"] or "?",
        ", ".join(container["gpus"]) or "?",
        container["detail"] or "ready",
    )


def _node_row(node: Document) -> tuple[str, ...]:
    counted: dict[str, int] = {}
    for replica in node["replicas"]:
        share = f", {replica['gpus']:g} GPU" if replica["gpus"] else ""
        state = "" if replica["state"] == "RUNNING" else f", {replica['state']}"
        name = f"{replica['model_id']} ({replica['pipeline']}{share}{state})"
        counted[name] = counted.get(name, 0) + 1
    gpus = f"{node['gpus_taken']:g} of {node['gpus']:g} taken" if node["gpus"] else "none"
    if node["gpus"] and node["gpu_type"]:
        gpus += f", {node['gpu_type']}"
    held = [f"{count} x {name}" for name, count in counted.items()]
    name = f"{node['hostname']} ({node['address']}){', draining' if node['draining'] else ''}"
    return name, gpus, ", ".join(held) or "-"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _aligned(heading: tuple[str, ...], rows: Collection[tuple[str, ...]] | Any) -> list[str]:
    table = [heading, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
