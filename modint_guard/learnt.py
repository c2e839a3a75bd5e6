"""What validation chose for mitigation: written by `make bench-mitigation`, never by hand.

A test holds it to docs/results/mitigation_validation.json. Until that run the two numbers are set by hand and
every order is that of `mitigation.REASONED`.
"""

from collections.abc import Mapping

DEBIAS_LAMBDA = 1.0
ACCEPT_AT = 0.5
# The ladder's rungs by cause, relevant modality and form of the answer, where enough answers were flagged.
ORDERS: Mapping[tuple[str, str, str], tuple[str, ...]] = {}
