"""`python -m bench tenants`: what one client's attacks do to another client's verdicts and times."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modint_guard.evaluation.results import commit, write_results
from tests.server.attacks import ATTACKS, SETTINGS, measured

JSON = dict[str, Any]
# Seconds for each answer, about those of a large model and of a toy; and how many times as many requests.
ENGINES = ((0.2, 1), (0.02, 5))
ROUNDS = 4


def measure_tenants(output: Path, *, requests: int, again: bool) -> None:
    """Writes a row for each attack and speed of the engine to `output`.

    again: keeps those rows that `output` holds already and whose victim, alone, met a quieter machine.
    """
    before = json.loads(output.read_text("utf-8"))["rows"] if again and output.exists() else []
    asyncio.run(_measure(output, requests, before))


async def _measure(output: Path, requests: int, before: list[JSON]) -> None:
    rows = list[JSON]()
    for engine_s, times in ENGINES:
        asked = measured(list(ATTACKS), requests=times * requests, rounds=ROUNDS, engine_s=engine_s)
        async for row in asked:
            rows.append({**asdict(row), "commit": commit()})
            write(output, quieter(rows, before))  # a run that is stopped keeps what it measured


def quieter(rows: list[JSON], before: list[JSON]) -> list[JSON]:
    """For each attack and engine, of two rows the one with the lower p99 of the victim alone."""
    chosen = {(row["attack"], row["engine_ms"]): row for row in before}
    for row in rows:
        key = row["attack"], row["engine_ms"]
        chosen[key] = min(row, chosen.get(key, row), key=lambda row: float(row["alone_p99_ms"]))
    return list(chosen.values())


def write(output: Path, rows: list[JSON]) -> None:
    """The rows, and what is to be known of them."""
    write_results(
        output,
        command="make bench-tenants",
        seeds=[0],
        rows=rows,
        title="One client attacks, another asks",
        notes="Gateway, engine and attacker are processes of their own on one machine; the gateway has "
        f"`MODINT_MAX_IN_FLIGHT={SETTINGS['max_in_flight']}`. With and without the attack take turns, "
        f"{ROUNDS} times each. `ratio`: of the victim's p99 to its p99 alone. `engine_ms`: what the engine "
        "takes for each answer, however many are asked of it. Where an attack was measured twice, the row is "
        "that of the quieter machine: of the lower p99 alone.",
    )
