"""How noisy the engine is: measured by an occasional `noop` probe, it is the margin that a flip must pass."""

from collections import defaultdict, deque
from collections.abc import Callable
from itertools import count

KEPT = 20  # measurements of each model; the largest of them counts


class NoiseFloor:
    """For each model, the largest recent change of a probability when the same request was asked twice.

    every: one judged request in so many is asked twice; 0: none.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._next: defaultdict[str, Callable[[], int]] = defaultdict(lambda: count(1).__next__)
        self._measurements: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))

    def is_due(self, model: str) -> bool:
        """Whether this request is to be asked twice; counts the request."""
        return bool(self._every) and self._next[model]() % self._every == 0

    def measured(self, model: str, noise: float) -> None:
        """Adds a measurement, in [0, 1]."""
        self._measurements[model].append(noise)

    def of(self, model: str) -> float:
        """The noise of a model, in [0, 1]; 0 before the first measurement."""
        return max(self._measurements[model], default=0.0) if model in self._measurements else 0.0
