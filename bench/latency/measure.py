"""`python -m bench latency`: the time that the guard adds to a request, in open loop and under full load.

Of each world one gateway and engine serve all arms. For answers of each length, first the capacity is
measured: the requests that the engine answers each second without the guard, with a fixed number of them
under way. Then requests arrive by themselves (Poisson) at a share of that rate, in blocks that take turns
(off, on, tenth, tenth, on, off). Blocks that belong together have the same arrival times. A request's time
counts from the moment it was due. Full load with the guard comes last.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from bench.detection.inputs import WORLDS, World
from bench.gateway.measure import busy_share
from bench.latency.client import Ask, asking
from bench.latency.figures import FULL, OPEN, goals, rows_of
from bench.latency.loads import FULL_LOAD, Timed, full_load, in_turns, open_loop
from bench.latency.pinning import served_apart
from bench.latency.requests import MODELS, OFF, ON, SHARES, TENTH, drawn, request_pool
from modint_guard.data.perturb import seeded
from modint_guard.evaluation.results import table, write_results
from modint_guard.types import JSON

TOKENS = (32, 128)  # of an answer
SHARE = 0.3  # of the capacity, in open loop
FULL_REQUESTS = {32: 64, 128: 32}  # under full load, by the tokens of an answer
FEWEST, MOST = 12, 32  # requests of a block in open loop, so that slow answers are enough to compare
WARM_UP = 24
TIMEOUT_S = 300
MOST_BYTES = 2**20  # of a stream's line; the one with the verdict is long
SERVED: dict[World, list[str]] = {"tinyworld": [], "picturebook": ["--model", MODELS["picturebook"]]}
NOTES = f"""\
Answers of exactly `tokens` tokens through the gateway and vLLM, each as `modint-guard serve` starts it for
the world's base alone: they are scored whole under the views once they are complete. `ratio`: of the medians
of requests with and without the guard (`modint.mode: off` in the same gateway), with a 95 % bootstrap
interval. A time runs from the moment a request was due to the end of its answer, of a stream to the chunk
with `finish_reason`, which carries the verdict; `first_ms`: to a stream's first token. `sample`: the share of
requests that is judged; at 0.1 the gateway draws them (`MODINT_SAMPLE=0.1`), of twenty requests two, and the
medians are of all requests, judged or not. `judged`: the share with a verdict; `scored_whole`: with one on
the whole answer.

`load` open: Poisson arrivals at {SHARE:.0%} of `capacity_per_s`, what the engine answers without the guard
with {FULL_LOAD} requests under way all the time; full: so many under way, with and without the guard. Blocks
of the arms take turns, those that belong together have the same arrival times, and their requests are
resampled together. Every other answer is streamed. Every request has an item of its own (lying, true, needed
and neutral inputs of both settings) and names what is relevant; a word that ends an answer or marks a turn is
forbidden in all of them, for it could not be scored. `probes` and the tokens they computed,
`probe_new_tokens`, are means a request of the guarded arm; a probe may be two calls. The gateway has seen
{WARM_UP} long answers before it is measured, so that views wait for those that follow."""


@dataclass(frozen=True)
class Lengths:
    """How much is measured: blocks of each arm in open loop, their length in seconds if that comes to FEWEST
    to MOST requests, and the seed of items and arrivals.
    """

    seconds: float
    blocks: int
    seed: int


def measure_latency(output: Path, lengths: Lengths, worlds: Sequence[World] = WORLDS) -> None:
    """Serves each world's base, measures answers of every length, and writes the table. Raises ConfigError if
    a base has to be fetched first and cannot be, EngineError if an engine does not start, EndpointError if a
    request gets no answer.
    """
    engine, others = cores = two_cores(sorted(os.sched_getaffinity(0)))
    busy = busy_share(sorted(set(cores)), 2.0)
    rows: list[dict[str, Any]] = []
    os.environ["MODINT_SAMPLE"] = str(SHARES[TENTH])
    for world in worlds:
        with served_apart(SERVED[world], engine, others) as served:
            rows += asyncio.run(_measured(served.url, world, lengths))
    only = "" if set(worlds) == set(WORLDS) else "".join(f" --world {world}" for world in worlds)
    write_results(
        output,
        command=f"python -m bench latency --seconds {lengths.seconds:g} --blocks {lengths.blocks} "
        f"--seed {lengths.seed}{only}",
        seeds=[lengths.seed],
        rows=rows,
        title="What the guard adds to a request's time",
        notes=f"{NOTES}\n\n{where(cores, busy)}",
        shown=f"{table(goals(rows))}\n{table(rows)}".rstrip(),
    )


def two_cores(usable: Sequence[int]) -> tuple[int, int]:
    """The cores of the engine, and of gateway and generator; the same one if there is no other."""
    return usable[0], usable[-1]


def where(cores: tuple[int, int], busy: float) -> str:
    """A sentence about the cores. busy: the share of them that other programs took."""
    engine, others = cores
    pinned = (
        "The engine is pinned to one core, gateway and generator of the load to another."
        if engine != others
        else "This process may use one core only: engine, gateway and generator of the load shared it."
    )
    return f"{pinned} Before it began, other programs took {busy:.0%} of them."


async def _measured(url: str, world: World, lengths: Lengths) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        read_bufsize=MOST_BYTES,
    ) as session:
        ask, pool = asking(session), request_pool(world, lengths.seed)
        await full_load(drawn(pool, WARM_UP, min(TOKENS), ON), ask, under_way=2)
        rows = [row async for row in measure(pool, ask, lengths)]
    return [{"world": MODELS[world], **row} for row in rows]


async def measure(pool: Iterator[JSON], ask: Ask, lengths: Lengths) -> AsyncIterator[dict[str, Any]]:
    """The rows of every length of answers: in open loop, then under full load, which leaves the gateway
    otherwise than it finds it: views that were late do not wait for answers.
    """
    capacities, full = dict[int, float](), dict[int, list[Timed]]()
    for tokens in TOKENS:
        began = time.perf_counter()
        full[tokens] = await full_load(drawn(pool, FULL_REQUESTS[tokens], tokens, OFF), ask)
        capacity = capacities[tokens] = len(full[tokens]) / (time.perf_counter() - began)
        rate = SHARE * capacity
        block = partial(open_block, pool, ask, lengths, tokens, rate)
        for row in rows_of(await in_turns(block, lengths.blocks), load=OPEN, tokens=tokens):
            yield {**row, "capacity_per_s": capacity, "rate_per_s": rate}
    for tokens in TOKENS:
        on = await full_load(drawn(pool, FULL_REQUESTS[tokens], tokens, ON), ask)
        for row in rows_of({OFF: full[tokens], ON: on}, load=FULL, tokens=tokens):
            yield {**row, "capacity_per_s": capacities[tokens], "rate_per_s": None}


async def open_block(
    pool: Iterator[JSON], ask: Ask, lengths: Lengths, tokens: int, rate: float, arm: str, number: int
) -> list[Timed]:
    """A block of one arm, with arrivals that are the same in all arms."""
    count = min(MOST, max(FEWEST, 2 * round(rate * lengths.seconds / 2)))
    requests = drawn(pool, count, tokens, arm, first=number * count)
    rng = seeded("arrivals", lengths.seed, tokens, number)
    return await open_loop(requests, ask, rate=rate, rng=rng)
