"""What a supervisor tells its children, through their stdin.

A line asks to read the aiModels.json again. The end of it is the end of the supervisor, however
that came. Unlike a signal, neither is lost on a child that is still starting.
"""

import sys
import threading
from collections.abc import Callable

READ_AGAIN = b"read again\n"


def listen_to_the_supervisor(
    *, read_again: Callable[[], object], end: Callable[[], object]
) -> None:
    """Calls back, from a thread."""

    def listen() -> None:
        for _ in sys.stdin:
            read_again()
        end()

    # A daemon: nothing that it waits for may keep this process.
    threading.Thread(target=listen, daemon=True).start()
