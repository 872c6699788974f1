"""The end of a supervisor, as its children notice it: their stdin ends."""

import sys
import threading
from collections.abc import Callable


def when_the_supervisor_ends(call: Callable[[], object]) -> None:
    """Calls back, from a thread, when stdin ends."""

    def wait() -> None:
        sys.stdin.read()
        call()

    # A daemon: nothing that it waits for may keep this process.
    threading.Thread(target=wait, daemon=True).start()
