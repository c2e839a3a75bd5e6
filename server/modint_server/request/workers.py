"""Threads for the work on a body that would hold up the event loop; clients share them.

A thread cannot be ended, so the work itself has to be bounded: by the limits on pixels, texts and values. The
place of a client that left stays taken until its work is done.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from modint_server.errors import unavailable
from modint_server.request.places import Places

T = TypeVar("T")


class Workers:
    """Runs work in `threads` threads, for which clients wait in turn.

    timeout_s: for waiting and work together.
    """

    def __init__(self, threads: int, places: Places, timeout_s: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bodies")
        self._places = places
        self._timeout_s = timeout_s

    async def run(self, key_digest: str, work: Callable[[], T]) -> T:
        """The result of the work. Raises what it raises, and RequestError 503 if it comes too late."""
        loop = asyncio.get_running_loop()

        def is_done(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._places.give_back, key_digest)

        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.wait(key_digest)
                working = self._pool.submit(work)
                working.add_done_callback(is_done)
                return await asyncio.wrap_future(working)
        except TimeoutError as exc:
            message = "pictures, texts or the answer could not be read in time: try again, or send less"
            raise unavailable(message, "image_timeout") from exc

    def close(self) -> None:
        """Begins no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)
