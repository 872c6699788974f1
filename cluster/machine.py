"""Where figures were taken: without it they mean nothing."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import features

from deployments.hardware import local_gpus

GIB = 1024**3

LIBRARIES = ("ray", "torch", "diffusers", "transformers", "pillow", "aiohttp", "grpcio")


def describe() -> dict[str, Any]:
    """Returns this machine and the versions that matter, as JSON; to be asked before a run."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "load_1min_before": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "pillow_zlib": _pillow_zlib(),
        "gpus": [gpu.name for gpu in local_gpus().values()],
    }


def text(machine: Mapping[str, Any]) -> str:
    """The description on two lines, for people."""
    gpus = f", {len(machine['gpus'])} GPUs ({machine['gpus'][0]})" if machine["gpus"] else ""
    return (
        f"machine: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB"
        f"{gpus}, {machine['system']}, load {machine['load_1min_before']} before the run\n"
        f"Python {machine['python']}, "
        + ", ".join(f"{name} {machine[name]}" for name in LIBRARIES)
        + f"; Pillow has {machine['pillow_zlib']}"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _pillow_zlib() -> str:
    """The compressor in Pillow's wheel."""
    if found := features.version_feature("zlib_ng"):
        return f"zlib-ng {found}"
    return f"zlib {features.version_codec('zlib')}"
