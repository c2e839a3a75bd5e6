"""Thresholds keep what they promise, on resamples of scores whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.errors import ConfigError
from modint_guard.evaluation.guarantees import (
    binomial_cdf,
    binomial_upper,
    error_threshold,
    feasible_flags,
    miss_threshold,
    needed_positives,
)

RESAMPLES = 600


def test_the_binomial_by_hand() -> None:
    assert binomial_cdf(0, 10, 0.1) == pytest.approx(0.9**10)
    assert binomial_cdf(1, 2, 0.5) == pytest.approx(0.75)
    assert binomial_cdf(2, 2, 0.5) == binomial_cdf(0, 5, 0.0) == 1.0
    assert binomial_cdf(0, 5, 1.0) == 0.0
    # The rule of three: no error in n answers bounds the share at 1 - delta^(1/n).
    assert binomial_upper(0, 59, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert binomial_upper(5, 5, 0.05) == 1.0


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.data())
def test_the_upper_bound_is_where_the_tail_is_delta(n: int, delta: float, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n - 1))
    bound = binomial_upper(successes, n, delta)
    assert (successes / n if delta <= 0.5 else 0.0) <= bound <= 1.0
    assert binomial_cdf(successes, n, bound) == pytest.approx(delta, abs=1e-6)


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.5, 1), (0.05, 19), (0.3, 3)])
def test_a_promise_needs_enough_positives(alpha: float, needed: int) -> None:
    assert needed_positives(alpha) == needed
    assert miss_threshold([0.5] * needed, alpha) == 0.5
    with pytest.raises(
        ConfigError, match=f"{needed - 1} positives are too few .* at least {needed} are needed"
    ):
        miss_threshold([0.5] * (needed - 1), alpha)


def test_the_threshold_by_hand() -> None:
    risks = [step / 20 for step in range(1, 20)]  # 19 positives
    # (misses + 1) / 20 <= 0.1 allows one miss: the second lowest risk.
    assert miss_threshold(risks, 0.1) == 0.1
    assert miss_threshold(risks, 0.05) == 0.05  # none at all


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_a_share_lies_between_0_and_1(alpha: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        miss_threshold([0.5] * 50, alpha)


@pytest.mark.parametrize(("alpha", "n"), [(0.1, 40), (0.1, 9), (0.2, 25)])
def test_the_miss_rate_is_kept_on_average_over_resamples(alpha: float, n: int) -> None:
    """P(a new positive lies below the threshold) is known exactly: its beta-distributed risk's own CDF."""
    rng = np.random.default_rng(7)
    population = np.sort(rng.beta(3, 2, 20_000))
    missed = []
    for _ in range(RESAMPLES):
        at = miss_threshold(list(rng.choice(population, n)), alpha)
        missed.append(np.searchsorted(population, at) / len(population))
    noise = 3 * np.std(missed) / math.sqrt(RESAMPLES)
    assert np.mean(missed) <= alpha + noise
    assert np.mean(missed) >= alpha - 1 / (n + 1) - noise  # and it does not promise by flagging everything


def test_the_error_among_unflagged_is_kept_in_all_but_delta_of_resamples() -> None:
    """Answers are wrong with exactly the probability that their risk says: the true error below any
    threshold is the mean risk there.
    """
    rng = np.random.default_rng(11)
    alpha, delta, broken, given = 0.1, 0.1, 0, 0
    population = rng.random(20_000) ** 2
    for _ in range(RESAMPLES):
        risks = rng.choice(population, 400)
        wrong = rng.random(400) < risks
        found = error_threshold(list(risks), list(wrong), alpha=alpha, delta=delta)
        if found is not None:
            given += 1
            broken += population[population < found.flag_at].mean() > alpha
    assert given > RESAMPLES / 2
    assert broken / RESAMPLES <= delta


def test_the_highest_threshold_that_passes_is_taken() -> None:
    risks = [0.1] * 200 + [0.9] * 100
    wrong = [False] * 200 + [True] * 100
    found = error_threshold(risks, wrong, alpha=0.1, delta=0.1)
    assert found is not None and (found.flag_at, found.n, found.errors) == (0.9, 200, 0)
    assert found.bound == pytest.approx(1 - (0.1 / 20) ** (1 / 200))
    capped = error_threshold(risks, wrong, alpha=0.1, delta=0.1, at_most=0.42)
    assert capped is not None and capped.flag_at == 0.4


def test_too_few_or_too_wrong_answers_pass_no_test() -> None:
    assert error_threshold([0.1] * 10, [False] * 10, alpha=0.1, delta=0.1) is None
    assert error_threshold([0.1] * 500, [True, False] * 250, alpha=0.1, delta=0.1) is None
    assert error_threshold([], [], alpha=0.1, delta=0.1) is None


def test_what_must_be_flagged_at_least_by_hand() -> None:
    # 28 % wrong, 10 % allowed: flagging 20 % perfectly leaves 8 of 80.
    assert feasible_flags(0.28, 0.1) == pytest.approx(0.2)
    assert feasible_flags(0.05, 0.1) == 0.0
