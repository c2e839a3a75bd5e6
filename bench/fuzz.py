"""`python -m bench fuzz`: damaged bodies of clients and damaged replies of an engine, in seeded numbers.

The gateway runs in this process before an engine in it; the damage is that of `tests.server.fuzz`.
"""

import asyncio
import logging
from dataclasses import asdict
from pathlib import Path

from modint_guard.evaluation.results import write_results
from tests.server.fuzz import Finding, Fuzz, Row, Side

BATCH = 10_000  # requests to one gateway


def measure_fuzz(output: Path, *, bodies: int, replies: int, seed: int) -> list[Finding]:
    """Writes a row for each side and batch to `output`; returns the first of each kind of failure."""
    logging.getLogger("modint_guard").setLevel(logging.CRITICAL)  # what a damaged reply does is counted
    rows, findings = list[Row](), list[Finding]()
    sides: tuple[tuple[Side, int], ...] = (("client", bodies), ("engine", replies))
    for side, count in sides:
        for first in range(0, count, BATCH):
            fuzz = Fuzz(side, seed)
            rows.append(asyncio.run(fuzz.run(min(BATCH, count - first), first)))
            findings += fuzz.findings.values()
            _write(output, rows, seed)
    return findings


def _write(output: Path, rows: list[Row], seed: int) -> None:
    """After each batch, so that a run that is stopped keeps what it measured."""
    write_results(
        output,
        command="make bench-fuzz",
        seeds=[seed],
        rows=[asdict(row) for row in rows],
        title="Damaged requests and replies",
        notes="`lost`: the engine's answer was whole, and the client did not get it. `refused`: 4xx.",
    )
