"""`python -m bench faults`: every fault at every stage of a request, and whether the client got its answer.

The engine is scripted and the gateway is real; the cases are those of `tests.server.faults`.
"""

import asyncio
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from modint_guard.evaluation.results import table, write_results
from tests.server.faults import Row, cases, measured


def measure_faults(output: Path, *, limit: int | None) -> None:
    """Runs the first `limit` cases, or all, and writes a row for each to `output`."""
    rows = asyncio.run(_rows(limit))
    write_results(
        output,
        command="make bench-faults",
        seeds=[0],
        rows=[asdict(row) for row in rows],
        title="Faults of the engine",
        shown=_by_stage(rows),
        notes="An answer is intact if the client reads, with status 200, the engine's or a policy's answer.",
    )


async def _rows(limit: int | None) -> list[Row]:
    return [row async for row in measured(list(cases())[:limit])]


def _by_stage(rows: list[Row]) -> str:
    """A table with a line for each stage."""
    total = Counter(row.stage for row in rows)
    lost = Counter(row.stage for row in rows if not row.answer_intact)
    left = Counter(row.stage for row in rows if row.tasks_left or row.sockets_left)
    return table(
        [
            {"stage": stage, "cases": total[stage], "answers_lost": lost[stage], "left_behind": left[stage]}
            for stage in total
        ]
    )
