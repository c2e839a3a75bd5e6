"""The logistic: fitted to its optimum, and never falling as an answer moves further."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.errors import ConfigError
from modint_guard.judging.risk import (
    FEATURES,
    Logistic,
    features_of_score,
    fit,
    fit_logistic,
    sigmoid,
)
from modint_guard.types import CellScore, Relevant, Score

CELL = CellScore(0.5, True, 1.0, True, 0.4, 0.8, 0.1, False, 2.0, 0.7, "red")


def test_a_sigmoid_of_anything_lies_within_0_and_1() -> None:
    assert sigmoid(0.0) == 0.5
    assert (sigmoid(-1e9), sigmoid(1e9)) == (0.0, 1.0)
    assert sigmoid(math.log(3)) == pytest.approx(0.75)


def test_the_bias_alone_is_the_log_odds() -> None:
    bias, weights = fit_logistic(np.zeros((4, 0)), np.array([1.0, 1.0, 1.0, 0.0]), 0.1)
    assert bias == pytest.approx(math.log(3)) and weights.shape == (0,)


@given(st.integers(0, 10_000))
def test_the_fit_is_the_optimum_of_its_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(40, 3)) * (1, 5, 0.1)
    labels = (rng.random(40) < 0.5).astype(float)
    labels[:2] = (0.0, 1.0)
    bias, weights = fit_logistic(features, labels, 0.1)
    p = 1 / (1 + np.exp(-(bias + features @ weights)))
    gradient = np.append((p - labels).sum(), features.T @ (p - labels) + 0.1 * weights)
    assert np.abs(gradient).max() < 1e-6


def test_separable_answers_keep_finite_weights() -> None:
    samples = [dict.fromkeys(FEATURES, 0.0) | {"js": x} for x in (0.1, 0.2, 0.8, 0.9)]
    found = fit(samples, [False, False, True, True])
    assert 0 < found.weights["js"] < 100
    assert found.risk(samples[0]) < 0.5 < found.risk(samples[3])


def test_a_feature_that_would_lower_the_risk_is_left_out() -> None:
    samples = [{"js": 1 - x, "margin": x} for x in (0.1, 0.2, 0.8, 0.9)]
    found = fit(samples, [False, False, True, True], names=("js", "margin"))
    assert found.weights["js"] == 0.0 < found.weights["margin"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1), st.booleans()), min_size=4, max_size=12))
def test_no_fitted_risk_falls_as_the_answer_moves_further(rows: list[tuple[float, float, bool]]) -> None:
    wrong = [bad for _, _, bad in rows]
    if len(set(wrong)) < 2:
        return
    found = fit([{"js": a, "margin": b} for a, b, _ in rows], wrong, names=("js", "margin"))
    assert min(found.weights.values()) >= 0.0


@pytest.mark.parametrize("wrong", [True, False])
def test_nothing_is_fitted_where_there_is_nothing_to_tell_apart(wrong: bool) -> None:
    with pytest.raises(ConfigError, match="2 answers, all right or all wrong"):
        fit([dict.fromkeys(FEATURES, 0.0)] * 2, [wrong] * 2)


def test_the_risk_of_a_scored_answer_by_hand() -> None:
    weights = {"js": 1.0, "margin": 2.0, "entropy": 0.5, "pmi": 0.25}
    features = features_of_score(Score({"no_context": CELL}, {}, entropy=1.5), Relevant.IMAGE)
    assert features == {"js": 0.5, "margin": 0.4, "entropy": 1.5, "pmi": 2.0}
    # -1 + 0.5 + 0.8 + 0.75 + 0.5 = 1.55
    expected = 1 / (1 + math.exp(-1.55))
    assert Logistic(-1.0, weights).risk(features) == pytest.approx(expected)


def test_without_an_irrelevant_modality_or_its_view_there_are_no_features() -> None:
    score = Score({"no_context": CELL}, {})
    assert features_of_score(score, Relevant.TEXT) is None
    assert features_of_score(score, Relevant.BOTH) is None
