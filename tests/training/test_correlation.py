"""Rank correlations by hand, and their interval over sources."""

import math

import numpy as np
import pytest

from modint_training.locate.correlation import spearman, spearman_interval


def test_a_rank_correlation_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3], [5, 4, 3]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5 over the root of 4.5 times 5.
    assert spearman([0, 7, 7, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_what_is_constant_has_no_rank_correlation() -> None:
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1], [1]) is None
    assert spearman_interval([1, 1, 1], [1, 2, 3], "abc") is None


def test_the_interval_of_a_rank_correlation_holds_it_and_resamples_sources() -> None:
    rng = np.random.default_rng(4)
    first = rng.normal(size=60)
    second = first + rng.normal(size=60)
    found = spearman_interval(first.tolist(), second.tolist(), list(range(60)))
    assert found is not None
    assert found[0] < (spearman(first.tolist(), second.tolist()) or 0) < found[1] < 1
    # Of two sources each resample has one or both; with the first alone the correlation is 1.
    both = spearman_interval([1, 2, 5, 6], [1, 2, 4, 3], ["a", "a", "b", "b"])
    assert both == pytest.approx((-1, 1))


def test_a_rank_correlation_needs_pairs() -> None:
    with pytest.raises(ValueError, match="pairs"):
        spearman([1, 2], [1])
