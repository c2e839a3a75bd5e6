"""`python -m bench tenants`: what one client's attacks do to another client's verdicts and times."""

import asyncio
from dataclasses import asdict
from pathlib import Path

from modint_guard.evaluation.results import write_results
from tests.server.attacks import ATTACKS, Row, measured


def measure_tenants(output: Path, *, requests: int) -> None:
    """Writes a row for each attack to `output`."""
    rows = asyncio.run(_rows(requests))
    write_results(
        output,
        command="make bench-tenants",
        seeds=[0],
        rows=[asdict(row) for row in rows],
        title="One client attacks, another asks",
        notes="The gateway has one core's worth of a process; engine, attacker and victim share another. "
        "`ratio`: of the victim's p99 to its p99 alone, just before.",
    )


async def _rows(requests: int) -> list[Row]:
    return [row async for row in measured(list(ATTACKS), requests=requests)]
