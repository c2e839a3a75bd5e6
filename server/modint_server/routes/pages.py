"""A page that costs something to make: made once at a time, and not all the time, however many ask for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
RESTS = 4  # times what a page of metrics took, before the next is made: they have a fifth of the time at most
LONGEST_REST_S = 5.0


class Page(Generic[T]):
    """Who asks while a page is being made gets the next one, together with all others who wait for it.

    rests: how many times what a page took, `LONGEST_REST_S` at most, passes before the next one is made.
    """

    def __init__(self, make: Callable[[], Awaitable[T]], *, rests: int = 0) -> None:
        self._make = make
        self._rests = rests
        self._turn = asyncio.Lock()
        self._due = 0.0  # when the next one may be made
        self._next: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """A page that was begun after this call. Raises what making it raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._make_next())
            self._next.add_done_callback(lambda page: page.cancelled() or page.exception())
        return await asyncio.shield(self._next)

    async def _make_next(self) -> T:
        async with self._turn:
            await asyncio.sleep(self._due - time.monotonic())
            self._next, began = None, time.monotonic()
            try:
                return await self._make()
            finally:
                ended = time.monotonic()
                self._due = ended + min(LONGEST_REST_S, self._rests * (ended - began))
