"""The GPUs that the cluster has now, and those that its autoscaler can add.

Ray knows its nodes. What its autoscaler may add, Ray tells nobody at runtime (2.60: the GCS has
a key for it that nothing writes), so that is read where `ray up` leaves it on the head, or is a
setting.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import ConfigError
from cluster.placement import GPUNode, Supply

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""The cluster's configuration, where `ray up` puts it on the head."""

MAX_NODES = 1000
"""Of one type; a larger number stands for `as many as you like`."""

_ACCELERATOR = "accelerator_type:"
_MACHINES = re.compile(r"(\d{1,4})x(\d{1,3})(?::([\w.-]+))?", re.ASCII)


def supply(nodes: Iterable[Mapping[str, float]], most: Iterable[GPUNode]) -> Supply:
    """Joins what is there with what may come.

    Ray does not say of which of the autoscaler's types a machine is, so that one with as many
    GPUs counts as one of them.

    Args:
        nodes: Ray's resources of each machine that is alive.
        most: the GPU machines of the cluster when its autoscaler has added all it may.
    """
    there = tuple(node for node in map(gpu_node, nodes) if node.gpus)
    counted = Counter(node.gpus for node in there)
    addable: list[GPUNode] = []
    for node in most:
        if counted[node.gpus]:
            counted[node.gpus] -= 1
        else:
            addable.append(node)
    return Supply(nodes=there, addable=tuple(addable))


def gpu_node(resources: Mapping[str, float]) -> GPUNode:
    """Reads Ray's resources of a machine."""
    kinds = (name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR))
    return GPUNode(gpus=int(resources.get("GPU", 0)), accelerator_type=next(kinds, None))


def autoscaler_most(setting: str | None, *, bootstrap: Path = BOOTSTRAP_CONFIG) -> list[GPUNode]:
    """The GPU machines when the autoscaler has added all it may; none without an autoscaler.

    Args:
        setting: `4x1,2x8:H100` is up to 4 machines with one GPU and 2 with 8 of that type.
            Without, the configuration that `ray up` left on this machine.
        bootstrap: that configuration; it need not exist.

    Raises:
        ConfigError: the setting is not of that form, or the configuration cannot be read.
    """
    if setting:
        return _machines(setting)
    path = bootstrap.expanduser()
    if not path.is_file():
        return []
    try:
        return list(_read(path, path.stat().st_mtime_ns))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: not a cluster configuration of `ray up` ({type(error).__name__}); remove "
            "it or say --autoscaler-gpus"
        ) from error


@lru_cache(maxsize=1)
def _read(path: Path, changed_ns: int) -> tuple[GPUNode, ...]:  # noqa: ARG001 - read when changed
    return tuple(from_cluster_config(yaml.safe_load(path.read_text())))


def known_most(setting: str | None) -> list[GPUNode]:
    """As `autoscaler_most`, for what runs on; the worker does not start where that raises."""
    try:
        return autoscaler_most(setting)
    except ConfigError:
        return []


def from_cluster_config(config: Mapping[str, Any]) -> list[GPUNode]:
    """The GPU machines that a cluster configuration of `ray up` allows.

    Where its types together allow more than the cluster as a whole, the first ones count.
    """
    left = min(config.get("max_workers", 2), MAX_NODES)
    head = config.get("head_node_type")
    found: list[GPUNode] = []
    for name, kind in config.get("available_node_types", {}).items():
        node = gpu_node(kind.get("resources", {}))
        if not node.gpus:
            continue
        workers = min(kind.get("max_workers", left), left)
        left -= workers
        found += [node] * (workers + (name == head))
    return found


def _machines(setting: str) -> list[GPUNode]:
    found: list[GPUNode] = []
    for part in setting.split(","):
        match = _MACHINES.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"--autoscaler-gpus: want MACHINESxGPUS or MACHINESxGPUS:TYPE, such as 4x1 or "
                f"2x8:H100, got {part!r}"
            )
        number, gpus, kind = match.groups()
        found += [GPUNode(gpus=int(gpus), accelerator_type=kind)] * min(int(number), MAX_NODES)
    return found
