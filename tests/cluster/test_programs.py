"""Our programs as processes."""

from pathlib import Path

import pytest

from cluster import programs
from cluster.programs import ProgramFailed


async def test_a_program_that_does_not_start_leaves_the_reason_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "orchestrator.log"
    with pytest.raises(ProgramFailed, match="did not start"):
        async with programs.orchestrator(secret="", log=log):
            pytest.fail("it runs without a secret")
    assert "--orch-secret is missing" in log.read_text()
