"""A page that costs something to make: made once at a time, however many ask for it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Page(Generic[T]):
    """Who asks while a page is being made gets the next one, together with all others who wait for it."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._turn = asyncio.Lock()
        self._next: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """A page that was begun after this call. Raises what making it raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._make_next())
            self._next.add_done_callback(lambda page: page.cancelled() or page.exception())
        return await asyncio.shield(self._next)

    async def _make_next(self) -> T:
        async with self._turn:
            self._next = None
            return await self._make()
