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
from dataclasses import replace
from typing import Any

from modint_guard.chat.reply import reply_of
from modint_guard.errors import EndpointTimeout
from modint_guard.types import JSON, Complete, Failure, Outcome, Reply, View

Clock = Callable[[], float]
Read = Callable[[JSON, float], Reply]  # a completion and its duration in milliseconds -> what it says
Answered = asyncio.Future[Reply | None]  # the answer once it is complete; None where it cannot be read
logger = logging.getLogger(__name__)


async def run(
    views: Sequence[View],
    complete: Complete,
    *,
    deadline_s: float,
    answered: Answered | None = None,
    read: Read = reply_of,
    clock: Clock = time.monotonic,
) -> dict[str, Reply | Failure]:
    """Reply or failure of each view by name.

    The views start at once; `deadline_s` seconds count from the moment `answered` is there, or from the start
    without it. Raises nothing but CancelledError.
    """
    start = clock()
    tasks = {view.name: asyncio.create_task(_one(view, complete, read, clock)) for view in views}
    try:
        await _until_done_or_late(set(tasks.values()), deadline_s, answered)
    finally:
        await gone([task for task in tasks.values() if not task.done()])
    waited_ms = (clock() - start) * 1000
    return {name: _outcome(task, waited_ms) for name, task in tasks.items()}


def with_cost_of(reply: Reply, other: Reply) -> Reply:
    """A reply that also counts the tokens and the time of another call made for the same view."""
    return replace(
        reply,
        prompt_tokens=reply.prompt_tokens + other.prompt_tokens,
        completion_tokens=reply.completion_tokens + other.completion_tokens,
        cached_tokens=reply.cached_tokens + other.cached_tokens,
        ms=reply.ms + other.ms,
    )


async def _one(view: View, complete: Complete, read: Read, clock: Clock) -> Reply | Failure:
    start = clock()
    try:
        completion = await complete(view.body)
        return read(completion, (clock() - start) * 1000)
    except EndpointTimeout:
        return Failure(Outcome.TIMEOUT, "timeout", (clock() - start) * 1000)
    except Exception as exc:  # noqa: BLE001 - the probe boundary: logged here, counted by its outcome
        logger.warning("probe %s failed: %s: %s", view.name, type(exc).__name__, exc)
        return Failure(Outcome.ERROR, "upstream_error", (clock() - start) * 1000)


async def _until_done_or_late(
    tasks: set[asyncio.Task[Reply | Failure]], deadline_s: float, answered: Answered | None
) -> None:
    """Return when all is done, or when the deadline since the complete answer has passed."""
    pending = set(tasks)
    while pending and answered is not None and not answered.done():
        waiting: set[asyncio.Future[Any]] = {answered, *pending}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        pending = {task for task in pending if not task.done()}
    if pending:
        await asyncio.wait(pending, timeout=deadline_s)


async def gone(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel them and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _outcome(task: asyncio.Task[Reply | Failure], waited_ms: float) -> Reply | Failure:
    return Failure(Outcome.TIMEOUT, "timeout", waited_ms) if task.cancelled() else task.result()
