"""How many tokens corrections may cost each client's key: a token bucket (as in RFC 2697, with one rate)."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class TokenBudget:
    """A bucket for each key, full at first, that fills steadily and holds what one minute brings.

    per_minute: tokens for each key, prompts included; 0: no limit. Requests without a key share one bucket.
    Each gateway counts by itself. clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_digest: str, wanted: int) -> int:
        """Takes up to `wanted` tokens and returns how many; the caller gives back what it does not spend."""
        if not self._per_minute:
            return wanted
        bucket = self._filled(key_digest)
        granted = min(wanted, int(bucket.tokens))
        bucket.tokens -= granted
        return granted

    def give_back(self, key_digest: str, tokens: int) -> None:
        """Puts back what was taken and not spent; a negative number is what was spent beyond it."""
        if self._per_minute:
            bucket = self._filled(key_digest)
            bucket.tokens = min(float(self._per_minute), bucket.tokens + tokens)

    def of(self, key_digest: str) -> "KeyBudget":
        """The budget of one key."""
        return KeyBudget(self, key_digest)

    def _filled(self, key_digest: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(key_digest, _Bucket(float(self._per_minute), now))
        since = now - bucket.filled_at
        bucket.tokens = min(float(self._per_minute), bucket.tokens + since * self._per_minute / 60)
        bucket.filled_at = now
        return bucket


@dataclass(frozen=True)
class KeyBudget:
    """A `TokenBudget` seen by the requests of one key."""

    budget: TokenBudget
    key_digest: str

    def take(self, wanted: int) -> int:
        """`TokenBudget.take` for this key."""
        return self.budget.take(self.key_digest, wanted)

    def give_back(self, tokens: int) -> None:
        """`TokenBudget.give_back` for this key."""
        self.budget.give_back(self.key_digest, tokens)
