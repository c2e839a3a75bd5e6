"""Figures of a score against numbers worked out by hand and against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.evaluation.curves import (
    auprc,
    auroc,
    calibration_error,
    fpr_at,
    reliability,
    risk_at,
    risk_coverage,
    roc,
)

SCORES, TRUTH = [0.9, 0.8, 0.7, 0.4, 0.2], [True, False, True, False, False]
LABELLED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=2
).filter(lambda rows: 0 < sum(y for _, y in rows) < len(rows))


def test_the_curves_by_hand() -> None:
    assert roc(SCORES, TRUTH) == [
        (0, 0),
        (0, 0.5),
        (pytest.approx(1 / 3), 0.5),
        (pytest.approx(1 / 3), 1),
        (pytest.approx(2 / 3), 1),
        (1, 1),
    ]
    assert auroc(SCORES, TRUTH) == pytest.approx(5 / 6)  # 5 of the 6 pairs are in order
    assert auprc(SCORES, TRUTH) == pytest.approx((1 + 2 / 3) / 2)
    assert fpr_at(SCORES, TRUTH, 0.95) == pytest.approx(1 / 3)
    assert fpr_at(SCORES, TRUTH, 0.5) == 0.0
    assert risk_coverage(SCORES, TRUTH) == [
        (0.2, 0.0),
        (0.4, 0.0),
        (pytest.approx(0.6), pytest.approx(1 / 3)),
        (0.8, 0.25),
        (1.0, 0.4),
    ]
    assert risk_at(SCORES, TRUTH, 0.8) == 0.25


def test_equal_scores_are_one_step() -> None:
    assert roc([0.5, 0.5, 0.5], [True, False, True]) == [(0, 0), (1, 1)]
    assert auroc([0.5, 0.5, 0.5], [True, False, True]) == 0.5
    assert auprc([0.5, 0.5, 0.5], [True, False, True]) == pytest.approx(2 / 3)
    assert risk_coverage([0.5, 0.5], [True, False]) == [(1.0, 0.5)]


@given(LABELLED)
def test_the_area_is_the_share_of_pairs_in_order(rows: list[tuple[float, bool]]) -> None:
    scores, truth = [s for s, _ in rows], [y for _, y in rows]
    pairs = [(a > b) + (a == b) / 2 for a, x in rows for b, y in rows if x and not y]
    assert auroc(scores, truth) == pytest.approx(float(np.mean(pairs)))
    assert auroc([-s for s in scores], truth) == pytest.approx(1 - auroc(scores, truth))
    assert sum(truth) / len(truth) * 0.0 <= auprc(scores, truth) <= 1.0
    points = roc(scores, truth)
    assert points == sorted(points) and points[0] == (0, 0) and points[-1] == (1, 1)


def test_reliability_by_hand() -> None:
    found = reliability([0.05, 0.08, 0.95, 1.0], [False, True, True, True])
    assert [(b.low, b.n, b.wrong) for b in found] == [(0.0, 2, 0.5), (0.9, 2, 1.0)]
    assert [b.said for b in found] == pytest.approx([0.065, 0.975])
    expected = (2 * abs(0.065 - 0.5) + 2 * abs(0.975 - 1.0)) / 4
    assert calibration_error([0.05, 0.08, 0.95, 1.0], [False, True, True, True]) == pytest.approx(expected)
    assert calibration_error([0.0, 1.0], [False, True]) == 0.0


@pytest.mark.parametrize(("scores", "truth"), [([], []), ([0.1], [True, False]), ([0.1, 0.2], [True, True])])
def test_a_curve_needs_both_classes(scores: list[float], truth: list[bool]) -> None:
    with pytest.raises(ValueError, match="both classes"):
        roc(scores, truth)


def test_a_coverage_needs_an_answer() -> None:
    with pytest.raises(ValueError, match="at least one"):
        risk_coverage([], [])
