"""How noisy the engine is: a `noop` probe now and then, and the margin that flips need because of it."""

from collections import defaultdict, deque
from collections.abc import Callable
from itertools import count

KEPT = 20  # measurements a model, of which the largest counts


class NoiseFloor:
    """The largest change of a probability, lately, when a request was asked again; apart for every model.

    every: one judged request in so many gets a `noop` of its own; 0 for none.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._next: defaultdict[str, Callable[[], int]] = defaultdict(lambda: count(1).__next__)
        self._seen: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))

    def is_due(self, model: str) -> bool:
        """Whether this request is to measure it; counts the request."""
        return bool(self._every) and self._next[model]() % self._every == 0

    def measured(self, model: str, noise: float) -> None:
        self._seen[model].append(noise)

    def of(self, model: str) -> float:
        """In [0, 1]; 0 before anything was measured."""
        return max(self._seen[model], default=0.0) if model in self._seen else 0.0
