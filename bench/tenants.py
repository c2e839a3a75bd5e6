"""`python -m bench tenants`: what one client's attacks do to another client's verdicts and times."""

import asyncio
from dataclasses import asdict
from pathlib import Path

from modint_guard.evaluation.results import write_results
from tests.server.attacks import ATTACKS, SETTINGS, Row, measured

# Seconds for each answer, about those of a large model and of a toy; and how many times as many requests.
ENGINES = ((0.2, 1), (0.02, 5))
ROUNDS = 4


def measure_tenants(output: Path, *, requests: int) -> None:
    """Writes a row for each attack and speed of the engine to `output`."""
    asyncio.run(_measure(output, requests))


async def _measure(output: Path, requests: int) -> None:
    rows = list[Row]()
    for engine_s, times in ENGINES:
        asked = measured(list(ATTACKS), requests=times * requests, rounds=ROUNDS, engine_s=engine_s)
        async for row in asked:
            rows.append(row)
            _write(output, rows)  # a run that is stopped keeps what it measured


def _write(output: Path, rows: list[Row]) -> None:
    write_results(
        output,
        command="make bench-tenants",
        seeds=[0],
        rows=[asdict(row) for row in rows],
        title="One client attacks, another asks",
        notes="Gateway, engine and attacker are processes of their own on one machine; the gateway has "
        f"`MODINT_MAX_IN_FLIGHT={SETTINGS['max_in_flight']}`. With and without the attack take turns, "
        f"{ROUNDS} times each. `ratio`: of the victim's p99 to its p99 alone. `engine_ms`: what the engine "
        "takes for each answer, however many are asked of it.",
    )
