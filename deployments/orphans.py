"""Ends what a library has started when this process is killed: `take_children_along`.

Serve and Ray end a replica by killing its process, and leave alone what that has started. A
library that computes in processes of its own would then hold its GPUs for ever, and the replica
that comes after would find no room. So another process waits for the end of this one, in
whichever way it comes. Run as a file, this module is that process.
"""

import os
import select
import subprocess
import sys
from contextlib import suppress
from functools import cache

LOOK_S = 2.0
"""Between two looks for children: one that is younger when this process ends is missed."""


@cache
def take_children_along() -> "subprocess.Popen[bytes]":
    """Lets no child of this process, nor one of theirs, outlive it. For environments with psutil.

    Returns:
        What sees to it, kept so that nobody else need keep it.
    """
    # This process alone holds the other end of its input, which thus ends with this process.
    command = [sys.executable, "-P", __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _wait() -> None:
    """Waits for the parent's end, then kills its children and theirs."""
    import psutil

    parent, own = psutil.Process(os.getppid()), psutil.Process()
    children: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        with suppress(psutil.NoSuchProcess):
            children.update(parent.children(recursive=True))
        children = {child for child in children if child.is_running() and child != own}
    for child in children:
        # psutil sees to it that this is not another process with the number of one that ended.
        with suppress(psutil.NoSuchProcess):
            child.kill()


if __name__ == "__main__":
    _wait()
