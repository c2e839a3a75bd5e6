"""Which requests are judged, if not all: a share of the traffic, drawn as OpenTelemetry draws traces.

OpenTelemetry's consistent probability sampling keeps a trace if the last 56 bits of its id are at least
(1 - share) * 2**56. So all requests of a trace have one fate, and what a tracer keeps at the same share is
what was judged.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_BITS = 56


@dataclass(frozen=True)
class Sample:
    """Draws requests. share: of them, in [0, 1]. draw: a number of so many random bits."""

    share: float
    draw: Callable[[int], int] = random.getrandbits

    def takes(self, trace: Mapping[str, str]) -> bool:
        """Whether a request is judged. trace: its W3C trace context, as `trace_of` reads it."""
        parent = trace.get("traceparent")
        number = self.draw(_BITS) if parent is None else int(parent.split("-")[1][-_BITS // 4 :], 16)
        return number >= round((1 - self.share) * (1 << _BITS))
