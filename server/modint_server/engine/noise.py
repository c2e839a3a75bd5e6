"""How noisy the engine is: measured by an occasional `noop` probe, it is the margin that a flip must pass.

Kept by client and model: an odd request (sampled at a high temperature, say) may look like noise, and must
not widen the margin of other clients.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from itertools import count

KEPT = 20  # measurements of each client and model; the largest of them counts
Place = tuple[str, str]  # the digest of the client's key, and the model


class NoiseFloor:
    """By client and model, the largest recent change of a probability when the same request was asked twice.

    every: one judged request in so many is asked twice; 0: none.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._next: defaultdict[Place, Callable[[], int]] = defaultdict(lambda: count(1).__next__)
        self._measurements: defaultdict[Place, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))

    def is_due(self, key_digest: str, model: str) -> bool:
        """Whether this request is to be asked twice; counts the request."""
        return bool(self._every) and self._next[key_digest, model]() % self._every == 0

    def measured(self, key_digest: str, model: str, noise: float) -> None:
        """Adds a measurement, in [0, 1], of a request that was due."""
        self._measurements[key_digest, model].append(noise)

    def of(self, key_digest: str, model: str) -> float:
        """The noise of a model for a client, in [0, 1]; 0 before the first measurement."""
        return max(self._measurements.get((key_digest, model), ()), default=0.0)
