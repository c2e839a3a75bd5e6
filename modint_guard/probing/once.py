"""Calls of the engine that several examinations share: each body is sent once."""

from __future__ import annotations

import asyncio

from modint_guard.probing.probe import cancel_and_wait
from modint_guard.types import JSON, Complete


class Once:
    """A `Complete` that sends a body once, however often it is asked for; bodies are told apart by identity.

    Who is cancelled while waiting does not cancel the call of the others. `close` cancels all that still run.
    """

    def __init__(self, complete: Complete) -> None:
        self._complete = complete
        self._calls: dict[int, tuple[JSON, asyncio.Future[JSON]]] = {}  # a body is held, so its id is its own

    async def __call__(self, body: JSON) -> JSON:
        if id(body) not in self._calls:
            self._calls[id(body)] = body, asyncio.ensure_future(self._complete(body))
        return await asyncio.shield(self._calls[id(body)][1])

    async def close(self) -> None:
        """Cancel the calls that still run, and wait until they have ended."""
        await cancel_and_wait([call for _, call in self._calls.values()])
