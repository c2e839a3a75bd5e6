"""Intervals, against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modint_guard.evaluation.curves import auroc
from modint_guard.evaluation.statistics import (
    Direction,
    auroc_resamples,
    cluster_interval,
    flip_direction,
    flip_rates,
    mcnemar,
    mean,
    paired_interval,
    percentile_interval,
)

HALF = [1.0] * 50 + [0.0] * 50


def test_a_mean_of_flags_is_their_share_and_of_nothing_there_is_none() -> None:
    assert mean(flag for flag in (True, False, True, True)) == 0.75
    assert mean([0.5, 2.0]) == 1.25
    assert mean([]) is None


def test_items_of_their_own_have_the_binomial_interval() -> None:
    # 95 % of Binomial(100, 1/2) lie in [40, 60].
    low, high = cluster_interval(HALF, range(100))
    assert low == pytest.approx(0.40, abs=0.011)
    assert high == pytest.approx(0.60, abs=0.011)


def test_items_of_one_source_count_as_one() -> None:
    # Ten sources, ten equal answers each: as uncertain as ten items; 95 % of Binomial(10, 1/2) lie in [2, 8].
    assert cluster_interval(HALF, [index // 10 for index in range(100)]) == pytest.approx((0.2, 0.8))


def test_a_larger_source_weighs_more() -> None:
    # Sources of 3 ones and of 1 zero: two draws give 6/6, 3/4 or 0/2, with 1/4, 1/2 and 1/4.
    assert cluster_interval([1, 1, 1, 0], "aaab") == (0.0, 1.0)
    assert cluster_interval([1, 1, 1, 0], "aaab", level=0.2) == pytest.approx((0.75, 0.75))


@pytest.mark.parametrize(
    ("value", "sources", "expected"),
    [
        (1.0, 20, (0.86089, 1.0)),  # 0.05 ** (1 / 20)
        (0.0, 20, (0.0, 0.13911)),
        (0.0, 5, (0.0, 0.45072)),  # 1 - 0.05 ** (1 / 5)
    ],
)
def test_all_right_is_not_certainty(value: float, sources: int, expected: tuple[float, float]) -> None:
    assert cluster_interval([value] * sources, range(sources)) == pytest.approx(expected, abs=1e-5)


def test_the_bound_counts_sources_and_not_items() -> None:
    assert cluster_interval([1.0] * 100, [index // 20 for index in range(100)]) == cluster_interval(
        [1.0] * 5, range(5)
    )


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [0.1, 0.7, 0.4, 0.9]
    assert cluster_interval(values, "abcd", seed=3) == cluster_interval(values, "abcd", seed=3)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_interval_of_a_share_holds_the_share(rows: list[tuple[float, int]]) -> None:
    values, clusters = [value for value, _ in rows], [cluster for _, cluster in rows]
    assume(len(set(clusters)) > 1)
    low, high = cluster_interval(values, clusters)
    assert 0 <= low <= sum(values) / len(values) <= high <= 1


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], []), ([1.0], [1, 2])])
def test_values_without_their_clusters_are_refused(values: list[float], clusters: list[int]) -> None:
    with pytest.raises(ValueError, match="as many clusters as values, and at least one"):
        cluster_interval(values, clusters)


# Two looks at the same items


def test_a_paired_interval_is_that_of_the_differences() -> None:
    before, after = [1.0] * 50 + [0.0] * 50, [1.0] * 100
    # 50 of 100 items gain 1, the others nothing: the share of gains is binomial.
    low, high = paired_interval(before, after, range(100))
    assert (low, high) == (pytest.approx(0.40, abs=0.011), pytest.approx(0.60, abs=0.011))
    assert paired_interval(after, before, range(100)) == pytest.approx((-high, -low), abs=0.011)


def test_what_moves_all_items_alike_is_known_better_than_their_mean() -> None:
    before = [index / 100 for index in range(100)]
    assert paired_interval(before, [value + 0.5 for value in before], range(100)) == pytest.approx((0.5, 0.5))


def test_no_difference_anywhere_is_not_certainty() -> None:
    same = [1.0, 0.0] * 10
    assert paired_interval(same, same, range(20)) == pytest.approx((-0.13911, 0.13911), abs=1e-5)


def test_pairs_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="needs pairs; got 1 and 2 values"):
        paired_interval([1], [1, 0], "a")


@pytest.mark.parametrize(
    ("before", "after", "right_before", "right_after", "direction"),
    [
        ("7", "3", True, False, "harmful"),
        ("3", "7", False, True, "beneficial"),
        ("3", "4", False, False, "neutral"),
        ("3", "3", False, False, "none"),
        ("7", "7.", True, True, "none"),  # right both times, whatever its spelling
        ("7", None, True, False, "harmful"),  # None: no option could be read
        ("3", None, False, False, "neutral"),
        (None, None, False, False, "none"),
    ],
)
def test_a_flip_has_a_direction(
    before: str | None, after: str | None, right_before: bool, right_after: bool, direction: str
) -> None:
    found = flip_direction(before, after, right_before=right_before, right_after=right_after)
    assert found == direction


def test_flip_rates_are_shares_of_all_items() -> None:
    found: list[Direction] = ["none"] * 5
    found += ["harmful", "harmful", "harmful", "beneficial", "neutral"]
    assert flip_rates(found) == {
        "harmful_flip": 0.3,
        "beneficial_flip": 0.1,
        "neutral_flip": 0.1,
    }
    with pytest.raises(ValueError, match="at least one pair"):
        flip_rates([])


@pytest.mark.parametrize(
    ("ours", "theirs", "p"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),  # 2 * (1 + 2) / 4 is capped
        (0, 5, 0.0625),  # 2 * 1 / 32
        (2, 8, 0.109375),  # 2 * (1 + 10 + 45) / 1024
    ],
)
def test_mcnemar_is_exact(ours: int, theirs: int, p: float) -> None:
    first = [True] * ours + [False] * theirs + [True, False]
    second = [False] * ours + [True] * theirs + [True, False]
    assert mcnemar(first, second) == (ours, theirs, p)
    assert mcnemar(second, first) == (theirs, ours, p)


def test_mcnemar_wants_the_same_items() -> None:
    with pytest.raises(ValueError, match="same items; got 1 and 2 answers"):
        mcnemar([True], [True, False])


# Areas under ROC curves


def test_resampled_areas_are_those_of_the_resample() -> None:
    # One source: every resample is the sample itself. Of four pairs three are won and one is a tie.
    found = auroc_resamples([0.9, 0.5, 0.5, 0.1], [True, True, False, False], ["a"] * 4, resamples=3)
    assert found.tolist() == [3.5 / 4] * 3 == [auroc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])] * 3


def test_resamples_without_one_of_the_classes_are_nan_and_left_out() -> None:
    found = auroc_resamples([1.0, 0.0], [True, False], ["a", "b"], resamples=200)
    alone = np.isnan(found)
    assert 0 < alone.sum() < 200 and set(found[~alone]) == {1.0}
    assert percentile_interval(found) == (1.0, 1.0)


def test_an_area_s_interval_covers_it_and_two_scores_are_resampled_alike() -> None:
    rng = np.random.default_rng(3)
    positive = [bool(each) for each in rng.random(200) < 0.5]
    scores = [each + rng.normal() for each in positive]
    own = percentile_interval(auroc_resamples(scores, positive, range(200)))
    assert own[0] < auroc(scores, positive) < own[1]
    again = auroc_resamples(scores, positive, range(200)) - auroc_resamples(scores, positive, range(200))
    assert not again.any()  # resampled alike


def test_areas_need_labels_clusters_and_both_classes() -> None:
    with pytest.raises(ValueError, match="both classes"):
        auroc_resamples([1.0, 2.0], [True, True], [0, 1])
    with pytest.raises(ValueError, match="a cluster for each"):
        auroc_resamples([1.0, 2.0], [True, False], [0])
