"""The disk that the bridge's journal is on: so small that it can be filled."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

BYTES = 256 * 1024


class Disk:
    """A directory, and a disk of its own while that is mounted."""

    def __init__(self, at: Path) -> None:
        """Makes the directory."""
        at.mkdir()
        self.at = at
        self.missing = ""
        """Why it cannot be filled; empty where it can."""

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Mounts it, where we may."""
        try:
            options = ["-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", str(self.at)]
            subprocess.run(["mount", *options], check=True, capture_output=True, text=True)  # noqa: S607
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            self.missing = f"no small disk can be mounted here: {said.strip()}"
            yield
            return
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.at)], check=True)  # noqa: S607

    def fill(self) -> None:
        """Leaves no byte on it."""
        with (self.at / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        """Makes room again."""
        (self.at / "filler").unlink()
