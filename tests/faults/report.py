"""The summary, as a table in Markdown."""

from collections.abc import Sequence

from tests.faults.ledger import Counts
from tests.faults.run import Outcome

HEAD = (
    "fault",
    "jobs",
    "results",
    "errors",
    "gone",
    "never came",
    "**lost**",
    "again",
    "well after",
)


def table(outcomes: Sequence[Outcome]) -> str:
    """One row a fault, and what is not as expected below."""
    rows = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *map(_row, outcomes)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += [
        f"\nNOT AS EXPECTED, {outcome.name}: {problem}"
        for outcome in outcomes
        for problem in outcome.problems
    ]
    return "\n".join(lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.skipped:
        return (f"{outcome.name}: skipped, {outcome.skipped}", *[""] * (len(HEAD) - 1))
    return (outcome.name, *cells(outcome.counts), f"{outcome.recovery_s:.1f} s")


def cells(counts: Counts) -> tuple[str, ...]:
    """The columns that are counts."""
    numbers = (
        counts.handed_out,
        counts.results,
        counts.errors,
        counts.orphaned,
        counts.never_came,
        counts.lost,
        counts.twice,
    )
    return tuple(map(str, numbers))
