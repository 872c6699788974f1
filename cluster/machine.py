"""Where figures were taken: without it they mean nothing."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import features

GIB = 1024**3


def describe() -> dict[str, Any]:
    """Returns the machine and the versions that matter, as JSON."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "load_1min_before": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch", "pillow", "aiohttp", "grpcio")},
        "pillow_zlib": _pillow_zlib(),
    }


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
