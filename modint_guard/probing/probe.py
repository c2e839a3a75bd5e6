"""Runs the perturbed views of one request, all at once, under one deadline.

Nothing that goes wrong here costs the user the answer: a view that fails or is late becomes a `Failure`. This
is the one place with a broad `except`. If the caller is cancelled, so is every view, and `run` waits until
all of them have ended.
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
from modint_guard.types import JSON, Complete, Failure, ProbeOutcome, Reply, View

Clock = Callable[[], float]
Read = Callable[[JSON, float], Reply]  # a completion and its duration in milliseconds -> the reply
FutureAnswer = asyncio.Future[Reply | None]  # the answer once it is complete; None if it cannot be read
logger = logging.getLogger(__name__)


async def run(
    views: Sequence[View],
    complete: Complete,
    *,
    deadline_s: float,
    future_answer: FutureAnswer | None = None,
    read: Read = reply_of,
    clock: Clock = time.monotonic,
) -> dict[str, Reply | Failure]:
    """The reply or failure of each view, by name. Raises nothing but CancelledError.

    All views start at once. deadline_s: seconds from the moment `future_answer` is set, or from the start if
    there is none. read: makes a reply of a completion; if it raises, the view has failed.
    """
    start = clock()
    tasks = {view.name: asyncio.create_task(_one(view, complete, read, clock)) for view in views}
    try:
        await _until_done_or_late(set(tasks.values()), deadline_s, future_answer)
    finally:
        await cancel_and_wait([task for task in tasks.values() if not task.done()])
    waited_ms = (clock() - start) * 1000
    return {name: _outcome(task, waited_ms) for name, task in tasks.items()}


def with_cost_of(reply: Reply, other: Reply) -> Reply:
    """The reply with the tokens and the time of another call for the same view added to its own."""
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
        return Failure(ProbeOutcome.TIMEOUT, "timeout", (clock() - start) * 1000)
    except Exception as exc:  # noqa: BLE001 - the probe boundary: logged here, counted by its outcome
        logger.warning("probe %s failed: %s: %s", view.name, type(exc).__name__, exc)
        return Failure(ProbeOutcome.ERROR, "upstream_error", (clock() - start) * 1000)


async def _until_done_or_late(
    tasks: set[asyncio.Task[Reply | Failure]], deadline_s: float, future_answer: FutureAnswer | None
) -> None:
    """Return when all tasks are done, or when the deadline has passed since the answer was complete."""
    pending = set(tasks)
    while pending and future_answer is not None and not future_answer.done():
        waiting: set[asyncio.Future[Any]] = {future_answer, *pending}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        pending = {task for task in pending if not task.done()}
    if pending:
        await asyncio.wait(pending, timeout=deadline_s)


async def cancel_and_wait(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel the tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _outcome(task: asyncio.Task[Reply | Failure], waited_ms: float) -> Reply | Failure:
    return Failure(ProbeOutcome.TIMEOUT, "timeout", waited_ms) if task.cancelled() else task.result()
