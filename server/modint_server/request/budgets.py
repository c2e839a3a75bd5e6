"""How many tokens mitigation may cost each key: a bucket that fills steadily (RFC 2697's, of one rate)."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class TokenBudget:
    """Holds at most what a minute brings; each gateway keeps its own.

    per_minute: tokens for each key, prompts included; 0 sets no limit. Requests of nobody's key share one.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_digest: str, wanted: int) -> int:
        """Sets aside up to `wanted` tokens, and says how many; what is not spent must be given back."""
        if not self._per_minute:
            return wanted
        bucket = self._filled(key_digest)
        granted = min(wanted, int(bucket.tokens))
        bucket.tokens -= granted
        return granted

    def give_back(self, key_digest: str, tokens: int) -> None:
        """What was set aside and not spent; below 0 what was spent beyond it."""
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
    """What corrections may cost one key."""

    budget: TokenBudget
    key_digest: str

    def take(self, wanted: int) -> int:
        """As `TokenBudget.take`."""
        return self.budget.take(self.key_digest, wanted)

    def give_back(self, tokens: int) -> None:
        """As `TokenBudget.give_back`."""
        self.budget.give_back(self.key_digest, tokens)
