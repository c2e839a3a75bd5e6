"""`python -m bench fuzz`: damaged bodies of clients and damaged replies of an engine, in seeded numbers.

The gateway runs in this process before an engine in it; the damage is that of `tests.server.fuzz`.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modint_guard.evaluation.results import commit, table, write_results
from tests.server.fuzz import Finding, Fuzz, Side

JSON = dict[str, Any]
Batch = tuple[Side, int, int, int]  # side, seed, number of the first request, and how many
BATCH = 10_000  # requests to one gateway
COUNTS = (
    *("requests", "ok", "refused", "engine_error", "internal_error", "unhandled", "malformed", "hung"),
    *("lost", "damaged_replies", "steps_failed", "tasks_left"),
)


def measure_fuzz(
    output: Path, *, bodies: int, replies: int, seed: int, processes: int, resume: bool
) -> list[Finding]:
    """Writes a row for each side and batch to `output`; returns the first of each kind of failure.

    resume: keeps the rows that `output` holds, each with the commit that it was measured at.
    """
    due = dict.fromkeys(_batches(bodies, replies, seed))
    before = json.loads(output.read_text("utf-8"))["rows"] if resume and output.exists() else []
    rows = [row for row in before if due.pop(_batch_of(row), ...) is None]
    findings = list[Finding]()
    with ProcessPoolExecutor(processes) as pool:
        for row, found in pool.map(_measured, due):
            rows.append(row)
            findings += found
            _write(output, rows, seed)
    return findings


def _batches(bodies: int, replies: int, seed: int) -> Iterator[Batch]:
    sides: tuple[tuple[Side, int], ...] = (("client", bodies), ("engine", replies))
    for side, count in sides:
        for first in range(0, count, BATCH):
            yield side, seed, first, min(BATCH, count - first)


def _batch_of(row: JSON) -> Batch:
    return row["side"], row["seed"], row["first"], row["requests"]


def _measured(batch: Batch) -> tuple[JSON, list[Finding]]:
    logging.getLogger("modint_guard").setLevel(logging.CRITICAL)  # what a damaged reply does is counted
    side, seed, first, count = batch
    fuzz = Fuzz(side, seed)
    row = asyncio.run(fuzz.run(count, first))
    return {**asdict(row), "commit": commit()}, list(fuzz.findings.values())


def _write(output: Path, rows: list[JSON], seed: int) -> None:
    """After each batch, so that a run that is stopped keeps what it measured."""
    write_results(
        output,
        command="make bench-fuzz",
        seeds=[seed],
        rows=rows,
        title="Damaged requests and replies",
        shown=table(_by_side(rows)),
        notes="`lost`: the engine's answer was whole, and the client did not get it. `refused`: 4xx. "
        "`engine_error`: 5xx because the reply itself was damaged.",
    )


def _by_side(rows: list[JSON]) -> list[JSON]:
    """A row for each side and commit, with the sums of its batches."""
    sums: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        counts = sums.setdefault((row["side"], row["commit"]), Counter())
        counts.update({name: row[name] for name in COUNTS})
    return [
        {"side": side, "commit": at, **{name: counts[name] for name in COUNTS}}
        for (side, at), counts in sums.items()
    ]
