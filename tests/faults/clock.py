"""The bridge's wall clock, which can be set while it runs, and nobody else's.

A machine's own clock belongs to everybody on it, and a time namespace has monotonic clocks only.
So the bridge runs with a library before libc (clock.c) that adds an offset. All code of the
process has this clock: Python, OpenSSL, gRPC and Ray's.
"""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """A clock that is right until it is set."""

    def __init__(self, directory: Path) -> None:
        """Builds the library in this directory, where there is a compiler."""
        self._offset = directory / "clock-offset"
        self.set_off_by(0)
        self._library = directory / "clock.so"
        self.missing = ""
        """Why it cannot be set; empty where it can."""
        compiler = shutil.which("cc")
        if compiler is None:
            self.missing = "no C compiler for a clock of the bridge's own"
            return
        command = [compiler, "-O1", "-fPIC", "-shared", "-o", str(self._library), str(SOURCE)]
        subprocess.run(command, check=True)

    @property
    def environment(self) -> dict[str, str]:
        """For the process that is to have it."""
        if self.missing:
            return {}
        return {"LD_PRELOAD": str(self._library), "FAULTS_CLOCK": str(self._offset)}

    def set_off_by(self, seconds: int) -> None:
        """Makes it jump; 0 is the right time."""
        # In place: the process has it mapped.
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))
