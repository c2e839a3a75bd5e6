"""Places that clients share: a client has at most its share of them, and those who wait are served in turn.

A client is known by its key's digest. Nobody who asks for much at once can take the places of the others.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable


class Places:
    """`total` places, of which one client holds at most `per_key()` at a time."""

    def __init__(self, total: int, per_key: Callable[[], int]) -> None:
        self._total = self._free = total
        self._per_key = per_key
        self._held: Counter[str] = Counter()
        self._taken_at = -math.inf
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by client, the next to be served first

    @property
    def held(self) -> int:
        """How many places are taken."""
        return self._held.total()

    @property
    def idle_s(self) -> float:
        """Seconds since a place was last taken, still held or not; infinite before the first."""
        return time.monotonic() - self._taken_at

    def is_full(self) -> bool:
        """Whether no place is left for anybody."""
        return self._free < 1

    def is_busy(self, key_digest: str, share: float) -> bool:
        """Whether more than this share of all places, or of those that the client may have, is taken."""
        held = self._held[key_digest]
        return self.held > max(1, self._total * share) or held > max(1, self._per_key() * share)

    def may_take(self, key_digest: str) -> bool:
        """Whether a client could take a place at once."""
        return self._free > 0 and self._held[key_digest] < self._per_key()

    def take(self, key_digest: str) -> None:
        """Takes a place that `may_take` says is there."""
        self._free -= 1
        self._held[key_digest] += 1
        self._taken_at = time.monotonic()

    def give_back(self, key_digest: str) -> None:
        """Gives a place back; whoever waits for one and is next gets it."""
        self._free += 1
        self._held[key_digest] -= 1
        if not self._held[key_digest]:
            del self._held[key_digest]
        self._serve()

    async def wait(self, key_digest: str) -> None:
        """Takes a place as soon as it is the client's turn."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key_digest, deque()).append(turn)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was served in the same moment
                self.give_back(key_digest)
            raise

    def _serve(self) -> None:
        """Gives free places to those who wait, one client after the other."""
        while self._free > 0 and (key_digest := self._next()) is not None:
            turns = self._waiting.pop(key_digest)
            turns.popleft().set_result(None)
            if turns:
                self._waiting[key_digest] = turns  # behind all others
            self.take(key_digest)

    def _next(self) -> str | None:
        """The first waiting client that may have one more place; those who left are forgotten."""
        for key_digest, turns in list(self._waiting.items()):
            while turns and turns[0].done():
                turns.popleft()
            if not turns:
                del self._waiting[key_digest]
            elif self._held[key_digest] < self._per_key():
                return key_digest
        return None
