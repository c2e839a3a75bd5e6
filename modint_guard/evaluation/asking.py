"""The one loop that asks many questions: some at a time, in any order, ended by the first error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


async def ask_each(
    jobs: Mapping[K, Callable[[], Awaitable[T]]],
    *,
    concurrency: int,
    done: Callable[[K, T], None] = lambda key, result: None,
) -> dict[K, T]:
    """The result of every job, in the jobs' order, at most `concurrency` under way. `done` is told of each as
    it comes. The first error cancels the others and is raised as itself.
    """
    slots = asyncio.Semaphore(concurrency)

    async def one(key: K, job: Callable[[], Awaitable[T]]) -> T:
        async with slots:
            result = await job()
        done(key, result)
        return result

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(one(key, job)) for key, job in jobs.items()}
    except ExceptionGroup as failed:  # the first says what went wrong; the others were cancelled or follow
        raise failed.exceptions[0] from None
    return {key: task.result() for key, task in tasks.items()}
