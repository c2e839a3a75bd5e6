"""What validation chose for mitigation: written by `make bench-mitigation`, never by hand.

A test holds it to bench/results/mitigation_validation.json, where there is one. Kinds of answer without an
order here have that of `mitigation.REASONED`.
"""

from collections.abc import Mapping

DEBIAS_LAMBDA = 1.0
ACCEPT_AT = 0.99
# The ladder's rungs by cause, relevant modality and form of the answer, where enough answers were flagged.
ORDERS: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    ("text", "image", "options"): ("neutralise", "escalate", "debias"),
    ("text", "image", "word"): ("neutralise", "escalate", "debias"),
}
