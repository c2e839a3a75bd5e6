"""The processor that the tests of training use; without scores there is no coverage to test."""

from tests.bench.scores import SCORES
from tests.training.conftest import processor as processor

# The scores come from the real engine (`make bench-calibration`); a bundled calibration has to come with them
# (test_calibrations.py).
collect_ignore = [] if SCORES.exists() else ["test_coverage.py"]
