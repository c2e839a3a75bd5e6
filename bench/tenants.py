"""`python -m bench tenants`: what one client's attacks do to another client's verdicts and times."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modint_guard.evaluation.results import commit, write_results
from tests.server.attacks import ATTACKS, SETTINGS, measured

JSON = dict[str, Any]
# Seconds for each answer, about those of a large model and of a toy; and how many times as many requests.
ENGINES = ((0.2, 1), (0.02, 5))
ROUNDS = 4


def measure_tenants(output: Path, *, requests: int) -> None:
    """Writes a row for each attack and speed of the engine to `output`."""
    asyncio.run(_measure(output, requests, commit()))


async def _measure(output: Path, requests: int, revision: str) -> None:
    rows = list[JSON]()
    for engine_s, times in ENGINES:
        asked = measured(list(ATTACKS), requests=times * requests, rounds=ROUNDS, engine_s=engine_s)
        async for row in asked:
            rows.append(asdict(row))
            write(output, rows, revision)  # a run that is stopped keeps what it measured


def write(output: Path, rows: list[JSON], revision: str) -> None:
    """The rows, and what is to be known of them. revision: the commit when the run began."""
    write_results(
        output,
        command="make bench-tenants",
        seeds=[0],
        rows=rows,
        title="One client attacks, another asks",
        notes="Gateway, engine and attacker are processes of their own on one machine; the gateway has "
        f"`MODINT_MAX_IN_FLIGHT={SETTINGS['max_in_flight']}`. With and without the attack take turns, "
        f"{ROUNDS} times each. `ratio`: of the victim's p99 to its p99 alone. `engine_ms`: what the engine "
        "takes for each answer, however many are asked of it.",
        revision=revision,
    )
