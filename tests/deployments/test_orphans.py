"""What becomes of a process's children when it is killed."""

import subprocess
import sys
import time

import psutil
import pytest

from deployments.orphans import LOOK_S

PARENT = """
import subprocess, sys
from deployments.orphans import take_children_along

assert take_children_along() is take_children_along()
grandchild = "import time; print('here', flush=True); time.sleep(600)"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
subprocess.run([sys.executable, "-c", child])
"""


@pytest.mark.timeout(120)
def test_children_of_a_killed_process_end_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"here\n"
            started = psutil.Process(parent.pid).children(recursive=True)
            assert len(started) == 3
            (guard,) = (process for process in started if "orphans.py" in process.cmdline()[-1])
            while not any("psutil" in mapped.path for mapped in guard.memory_maps()):
                time.sleep(0.1)
            # From here it looks every few seconds, and nothing tells when it has.
            assert psutil.wait_procs(started, timeout=3 * LOOK_S)[0] == []
        finally:
            parent.kill()
    assert psutil.wait_procs(started, timeout=60)[1] == []
