"""How requests arrive: by themselves, or so many under way all the time."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.latency.client import Ask, Told
from bench.latency.requests import ARMS, Request
from modint_guard.types import JSON

FULL_LOAD = 16  # requests under way at the same time


@dataclass(frozen=True)
class Timed:
    """One request's times in milliseconds, from the moment it was due. first_ms: to the first token of a
    stream, None for a whole answer. modint: the object in the answer, empty without one.
    """

    streamed: bool
    ms: float
    first_ms: float | None
    modint: JSON


Block = Callable[[str, int], Awaitable[list[Timed]]]  # an arm and the block's number


async def in_turns(block: Block, blocks: int, arms: Sequence[str] = ARMS) -> dict[str, list[Timed]]:
    """Run `blocks` blocks of each arm, in an order that turns round each time. Blocks that belong together
    have the same number.
    """
    found: dict[str, list[Timed]] = {arm: [] for arm in arms}
    for number in range(blocks):
        for arm in arms if number % 2 == 0 else reversed(arms):
            found[arm] += await block(arm, number)
    return found


async def open_loop(requests: Sequence[Request], ask: Ask, *, rate: float, rng: random.Random) -> list[Timed]:
    """Send requests as they arrive, `rate` per second on average; returns when all are answered."""
    began = time.perf_counter()

    async def one(request: Request, due: float) -> Timed:
        await asyncio.sleep(began + due - time.perf_counter())
        return _timed(request, began + due, await ask(request))

    due = itertools.islice(arrivals(rate, rng), len(requests))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(*each)) for each in zip(requests, due, strict=True)]
    return [task.result() for task in tasks]


def arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """The seconds from the start at which requests arrive: the gaps are exponential, 1 / rate on average."""
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


async def full_load(requests: Sequence[Request], ask: Ask, *, under_way: int = FULL_LOAD) -> list[Timed]:
    """Send all requests in their order, so many at the same time."""
    waiting, timed = iter(enumerate(requests)), dict[int, Timed]()

    async def client() -> None:
        for number, request in waiting:
            began = time.perf_counter()
            timed[number] = _timed(request, began, await ask(request))

    async with asyncio.TaskGroup() as group:
        for _ in range(under_way):
            group.create_task(client())
    return [timed[number] for number in range(len(requests))]


def _timed(request: Request, due: float, told: Told) -> Timed:
    first_ms = None if told.first is None else 1000 * (told.first - due)
    return Timed(request.streamed, 1000 * (told.ended - due), first_ms, told.modint)
