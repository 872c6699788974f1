"""`make faults`: every fault of the table, through one door after the other, and the summary.

    python -m tests.faults [--door DOOR] [--only PATTERN]

Exit status: 1 when something is not as expected.
"""

import argparse
import asyncio
import re
import sys
import tempfile
from pathlib import Path

from cluster import machine
from tests.faults.doors import Door
from tests.faults.report import table
from tests.faults.run import Outcome, run
from tests.faults.table import FAULTS, Fault
from tests.faults.world import World, until_told_to_end, world

LOG_LINES = 60


def main() -> int:
    """Runs them and prints the tables."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--door", type=Door, choices=list(Door), help="only through this one")
    parser.add_argument("--only", default="", metavar="PATTERN", help="of the faults' names")
    arguments = parser.parse_args()
    where = machine.describe()
    chosen = [fault for fault in FAULTS if re.search(arguments.only, fault.name)]
    doors = [arguments.door] if arguments.door else list(Door)
    outcomes = asyncio.run(until_told_to_end(_run(doors, chosen)))
    for door in doors:
        _say(f"\n{door}:\n\n{table(outcomes[door])}")
    _say(
        "\n"
        f"machine: {where['cores']} cores of {where['cpu']}, {where['memory_gib']} GiB, "
        f"load {where['load_1min_before']} before the run; ray {where['ray']}"
    )
    return int(any(outcome.problems for through in outcomes.values() for outcome in through))


async def _run(doors: list[Door], faults: list[Fault]) -> dict[Door, list[Outcome]]:
    outcomes: dict[Door, list[Outcome]] = {door: [] for door in doors}
    with tempfile.TemporaryDirectory(prefix="livepeer-ray-faults-") as directory:
        async with world(Path(directory), networks=True, door=doors[0]) as made:
            for door in doors:
                await made.use(door)
                for fault in faults:
                    if door in fault.proofs:
                        outcomes[door].append(await _one(fault, made))
    return outcomes


async def _one(fault: Fault, made: World) -> Outcome:
    _say(f"{fault.name} ...")
    said = len(made.bridge_log)
    outcome = await run(fault, made)
    if outcome.problems:
        _say("\n".join(["the end of the bridge's log:", *made.bridge_log[said:][-LOG_LINES:]]))
    _say(table([outcome]).splitlines()[2])
    return outcome


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (a program)


if __name__ == "__main__":
    sys.exit(main())
