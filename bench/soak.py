"""`python -m bench soak`: what tens of thousands of requests leave in the gateway's process."""

import asyncio
from dataclasses import asdict
from pathlib import Path

import numpy as np

from modint_guard.evaluation.results import table, write_results
from tests.server.soak import Row, soaked


def measure_soak(output: Path, *, count: int, seed: int) -> None:
    """Writes a row for each twentieth of the requests to `output`."""
    rows = asyncio.run(_rows(count, seed))
    slope = slope_kb(rows)
    write_results(
        output,
        command="make bench-soak",
        seeds=[seed],
        rows=[asdict(row) for row in rows],
        title="What many requests leave behind",
        shown=table([asdict(row) for row in rows[:: max(1, len(rows) // 5)]] + [asdict(rows[-1])]),
        notes=f"Memory grows by {slope:.0f} kB per 10,000 requests in the second half.",
    )


def slope_kb(rows: list[Row]) -> float:
    """The slope of resident memory over the second half, in kB per 10,000 requests, by least squares."""
    half = rows[len(rows) // 2 :]
    slope, _ = np.polyfit([row.requests for row in half], [row.rss_kb for row in half], 1)
    return float(slope) * 10_000


async def _rows(count: int, seed: int) -> list[Row]:
    return [row async for row in soaked(count, seed=seed)]
