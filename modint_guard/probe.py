"""Run the perturbed views of one request, all at once, under one deadline.

Nothing that goes wrong in here costs the user the answer: a view that fails or is late becomes a `Failure`.
This is the one place with a broad `except`. If the caller is cancelled, so is every view, and `run` waits
until they are gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from modint_guard.errors import EndpointTimeout
from modint_guard.reply import reply_of
from modint_guard.types import Complete, Failure, Outcome, Reply, View

Clock = Callable[[], float]
logger = logging.getLogger(__name__)


async def run(
    views: Sequence[View],
    complete: Complete,
    *,
    deadline_s: float,
    answered: asyncio.Event | None = None,
    clock: Clock = time.monotonic,
) -> dict[str, Reply | Failure]:
    """Reply or failure of each view by name.

    The views start at once; `deadline_s` seconds count from the moment `answered` is set, or from the start
    without it. Raises nothing but CancelledError.
    """
    start = clock()
    tasks = {view.name: asyncio.create_task(_one(view, complete, clock)) for view in views}
    try:
        await _until_done_or_late(set(tasks.values()), deadline_s, answered)
    finally:
        await _gone([task for task in tasks.values() if not task.done()])
    waited_ms = (clock() - start) * 1000
    return {name: _outcome(task, waited_ms) for name, task in tasks.items()}


async def _one(view: View, complete: Complete, clock: Clock) -> Reply | Failure:
    start = clock()
    try:
        completion = await complete(view.body)
        return reply_of(completion, (clock() - start) * 1000)
    except EndpointTimeout:
        return Failure(Outcome.TIMEOUT, "timeout", (clock() - start) * 1000)
    except Exception as exc:  # noqa: BLE001 - the probe boundary: logged here, counted by its outcome
        logger.warning("probe %s failed: %s: %s", view.name, type(exc).__name__, exc)
        return Failure(Outcome.ERROR, "upstream_error", (clock() - start) * 1000)


async def _until_done_or_late(
    tasks: set[asyncio.Task[Reply | Failure]], deadline_s: float, answered: asyncio.Event | None
) -> None:
    if not tasks:
        return
    if answered is not None:
        await _until_answered(tasks, answered)
    await asyncio.wait(tasks, timeout=deadline_s)


async def _until_answered(tasks: set[asyncio.Task[Reply | Failure]], answered: asyncio.Event) -> None:
    """Return when the answer is complete, or when there is nothing left to wait for."""
    answer = asyncio.create_task(answered.wait())
    try:
        while tasks and not answer.done():
            _, pending = await asyncio.wait({answer, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            tasks = {task for task in tasks if task in pending}
    finally:
        await _gone([answer])


async def _gone(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _outcome(task: asyncio.Task[Reply | Failure], waited_ms: float) -> Reply | Failure:
    return Failure(Outcome.TIMEOUT, "timeout", waited_ms) if task.cancelled() else task.result()
