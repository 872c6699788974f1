"""One model in the Hugging Face cache layout, the same bytes every time."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_repository(directory: Path, model_id: str, save: Callable[[Path], None]) -> Path:
    """Writes one model in the Hugging Face cache layout, replacing what was there.

    Args:
        directory: the models directory.
        model_id: `organisation/name`.
        save: writes the model's files into an empty directory; its random numbers are seeded.

    Returns:
        The snapshot directory, named by a hash of the contents as a commit would be.
    """
    import torch

    repository = directory / f"models--{model_id.replace('/', '--')}"
    shutil.rmtree(repository, ignore_errors=True)
    (repository / "blobs").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as saved, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save(Path(saved))
        hashes = {
            file.relative_to(saved): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(Path(saved).rglob("*"))
            if file.is_file()
        }
        for path, blob in hashes.items():
            shutil.copyfile(Path(saved) / path, repository / "blobs" / blob)
    contents = "".join(f"{path.as_posix()} {blob}\n" for path, blob in hashes.items())
    commit = hashlib.sha256(contents.encode()).hexdigest()[:40]
    snapshot = repository / "snapshots" / commit
    for path, blob in hashes.items():
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(repository / "blobs" / blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot
