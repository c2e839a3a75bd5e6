"""Constants of mitigation, fitted on a validation split: written by `make bench-mitigation`, never by hand.

A test compares them with bench/results/mitigation_validation.json. Kinds of answers that have no order here
take that of `policy.REASONED`.
"""

from collections.abc import Mapping

DEBIAS_LAMBDA = 1.0
ACCEPT_AT = 0.99
# The ladder's rungs by cause, relevant modality and form of the answer, for kinds with enough flagged
# answers.
ORDERS: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    ("text", "image", "options"): ("neutralise", "escalate", "debias"),
    ("text", "image", "word"): ("neutralise", "escalate", "debias"),
}
