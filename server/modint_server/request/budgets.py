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

    def take(self, holder: str, wanted: int) -> int:
        """Sets aside up to `wanted` tokens, and says how many; what is not spent must be given back."""
        if not self._per_minute:
            return wanted
        bucket = self._filled(holder)
        granted = min(wanted, int(bucket.tokens))
        bucket.tokens -= granted
        return granted

    def give_back(self, holder: str, tokens: int) -> None:
        """What was set aside and not spent; below 0 what was spent beyond it."""
        if self._per_minute:
            bucket = self._filled(holder)
            bucket.tokens = min(float(self._per_minute), bucket.tokens + tokens)

    def _filled(self, holder: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(holder, _Bucket(float(self._per_minute), now))
        since = now - bucket.filled_at
        bucket.tokens = min(float(self._per_minute), bucket.tokens + since * self._per_minute / 60)
        bucket.filled_at = now
        return bucket
