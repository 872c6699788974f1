"""`livepeer-ray tiny-models`: writes tiny random-weight models and their aiModels.json."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run(directory: Path, *, pipelines: Sequence[str]) -> int:
    """Runs the generator in a process of its own: it needs torch, which never loads here."""
    only = [argument for pipeline in pipelines for argument in ("--pipeline", pipeline)]
    command = [sys.executable, "-m", "deployments.tiny_models", str(directory), *only]
    return subprocess.run(command, check=False).returncode
