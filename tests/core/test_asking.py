"""Many questions at once: bounded, in order, and ended by the first error."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from modint_guard.errors import EndpointError
from modint_guard.evaluation.asking import ask_each


async def test_results_come_in_the_jobs_order_and_are_told_as_they_come() -> None:
    seen: list[tuple[str, int]] = []
    gate = asyncio.Event()

    async def slow() -> int:
        await gate.wait()
        return 1

    async def fast() -> int:
        gate.set()
        return 2

    found = await ask_each(
        {"slow": slow, "fast": fast}, concurrency=2, done=lambda key, result: seen.append((key, result))
    )
    assert list(found.items()) == [("slow", 1), ("fast", 2)]
    assert seen == [("fast", 2), ("slow", 1)]
    assert await ask_each({}, concurrency=1) == {}


async def test_no_more_than_the_allowed_number_is_under_way() -> None:
    now = most = 0

    async def job() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    await ask_each(dict.fromkeys(range(20), job), concurrency=3)
    assert most == 3


async def test_the_first_error_is_raised_as_itself_and_cancels_the_others() -> None:
    cancelled: list[int] = []

    async def waits(number: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def fails() -> None:
        await asyncio.sleep(0)
        raise EndpointError("the engine is gone")

    jobs: dict[object, Callable[[], Awaitable[None]]] = {n: partial(waits, n) for n in range(2)}
    with pytest.raises(EndpointError, match="the engine is gone"):
        await ask_each({**jobs, "fails": fails}, concurrency=8)
    assert sorted(cancelled) == [0, 1]
