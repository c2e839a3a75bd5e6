"""Divergences against numbers worked out by hand and against numpy."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modint_guard.chat.reply import token_text
from modint_guard.judging.divergence import (
    coverage,
    entropy,
    js_divergence,
    js_lower_bound,
    largest_shift,
    option_distribution,
    relative_entropy,
    word_distribution,
)

WEIGHTS = st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(lambda w: sum(w) > 0.01)


def logs(**probabilities: float) -> dict[str, float]:
    return {token: math.log(p) for token, p in probabilities.items()}


def normal(weights: list[float]) -> dict[str, float]:
    return {str(i): w / sum(weights) for i, w in enumerate(weights)}


def top(p: Mapping[str, float], k: int) -> dict[str, float]:
    """The k likeliest entries as log-probabilities, with -9999 for none at all, as vLLM writes it."""
    best = sorted(p, key=lambda key: -p[key])[:k]
    return {key: math.log(p[key]) if p[key] > 0 else -9999.0 for key in best}


def oracle(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """The definition: H(m) - (H(p) + H(q)) / 2, entropies in bits."""

    def entropy(x: np.ndarray) -> float:
        x = x[x > 0]
        return float(-(x * np.log2(x)).sum())

    keys = sorted(p.keys() | q.keys())
    a, b = (np.array([d.get(key, 0.0) for key in keys]) for d in (p, q))
    return entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2


def test_js_by_hand() -> None:
    assert js_divergence({"a": 1.0}, {"b": 1.0}) == 1.0
    assert js_divergence({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}) == 0.0
    # m = (3/4, 1/4): 1/2 log2(4/3) + 1/2 (1/2 log2(2/3) + 1/2 log2(2)) = 0.2075 + 0.1038
    assert js_divergence({"a": 1.0}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.311278, abs=1e-6)
    # Symmetric case: 1 - h(0.9) with h the binary entropy, 0.468996
    assert js_divergence({"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}) == pytest.approx(0.531004, abs=1e-6)


@given(WEIGHTS, WEIGHTS)
def test_js_is_the_definition_symmetric_and_within_0_and_1(first: list[float], second: list[float]) -> None:
    p, q = normal(first), normal(second)
    value = js_divergence(p, q)
    assert value == pytest.approx(oracle(p, q), abs=1e-9)
    assert value == pytest.approx(js_divergence(q, p), abs=1e-12)
    assert 0.0 <= value <= 1.0
    assert js_divergence(p, p) == 0.0


@given(WEIGHTS, WEIGHTS, st.integers(1, 6), st.integers(1, 6))
def test_top_k_never_says_more_than_the_whole(
    first: list[float], second: list[float], k: int, m: int
) -> None:
    p, q = normal(first), normal(second)
    bound = js_lower_bound(top(p, k), top(q, m))
    assert 0.0 <= bound <= js_divergence(p, q) + 1e-9
    assert bound == pytest.approx(js_lower_bound(top(q, m), top(p, k)), abs=1e-12)
    assert js_lower_bound(top(p, k), top(p, k)) == 0.0


@given(WEIGHTS, WEIGHTS)
def test_complete_lists_give_the_exact_value(first: list[float], second: list[float]) -> None:
    p, q = normal(first), normal(second)
    assert js_lower_bound(top(p, 6), top(q, 6)) == pytest.approx(js_divergence(p, q), abs=1e-6)


@given(WEIGHTS, WEIGHTS, st.integers(2, 5))
def test_a_sampled_token_from_outside_the_top_k_keeps_the_bound(
    first: list[float], second: list[float], k: int
) -> None:
    p, q = normal(first), normal(second)
    least = min(p, key=p.__getitem__)
    assume(p[least] > 0)
    listed = top(p, k) | {least: math.log(p[least])}
    assert js_lower_bound(listed, top(q, k)) <= js_divergence(p, q) + 1e-9


def test_confident_and_disjoint_lists_are_almost_wholly_apart() -> None:
    assert js_lower_bound(logs(red=0.98, x=0.01), logs(blue=0.98, y=0.01)) > 0.9


def test_options_are_renormalised_and_blanks_merged() -> None:
    found = option_distribution(
        logs(A=0.2) | {" A": math.log(0.4), "B": math.log(0.2), "The": math.log(0.1)}, "AB", 0.5
    )
    assert found == pytest.approx({"A": 0.75, "B": 0.25})


def test_options_need_all_labels_and_half_of_the_mass() -> None:
    assert option_distribution(logs(A=0.9), "AB", 0.5) is None
    assert option_distribution(logs(A=0.3, B=0.1, The=0.6), "AB", 0.5) is None
    assert option_distribution({"A": -0.1, "B": -9999.0}, "AB", 0.5) is None
    assert option_distribution({}, "", 0.5) is None


def test_words_that_differ_by_blanks_or_case_are_one() -> None:
    merged = word_distribution({" Red": math.log(0.5), "red": math.log(0.25), "▁red": math.log(0.125)})
    assert merged == pytest.approx({"red": 0.875})
    assert [token_text(token) for token in (" A", "▁A", "ĠA", "A\n")] == ["A"] * 4


@given(WEIGHTS, WEIGHTS, st.integers(1, 6))
def test_coverage_is_the_lesser_of_what_both_lists_hold(
    first: list[float], second: list[float], k: int
) -> None:
    p, q = normal(first), normal(second)
    held = [sum(sorted(d.values(), reverse=True)[:k]) for d in (p, q)]
    assert coverage(top(p, k), top(q, k)) == pytest.approx(min(held), abs=1e-9)
    assert coverage(top(p, 6), top(q, 6)) == pytest.approx(1.0)


@given(WEIGHTS, WEIGHTS, st.integers(2, 6))
def test_a_shift_proven_by_lists_is_never_more_than_the_true_one(
    first: list[float], second: list[float], k: int
) -> None:
    p, q = normal(first), normal(second)
    true = max(abs(p[key] - q[key]) for key in p)
    found = largest_shift(top(p, k), top(q, k))
    assert 0.0 <= found <= true + 1e-9
    assert found == pytest.approx(largest_shift(top(q, k), top(p, k)))
    assert largest_shift(top(p, k), top(p, k)) == 0.0


def test_a_shift_by_hand() -> None:
    assert largest_shift(logs(red=0.8, blue=0.2), logs(red=0.7, blue=0.3)) == pytest.approx(0.1)
    # green had at most what blue, the last but one, had: 0.1
    assert largest_shift(logs(red=0.7, blue=0.1, x=0.05), logs(red=0.6, green=0.35)) == pytest.approx(0.25)


@given(WEIGHTS)
def test_entropy_is_that_of_numpy_and_a_list_gives_no_more(weights: list[float]) -> None:
    p = normal(weights)
    x = np.array([v for v in p.values() if v > 0])
    whole = float(-(x * np.log2(x)).sum())
    assert entropy(p) == pytest.approx(whole, abs=1e-9)
    listed = {key: p[key] for key in sorted(p, key=lambda key: -p[key])[:3]}
    assert 0.0 <= entropy(listed) <= whole + 1e-9


@given(st.floats(0, 20), st.floats(0, 20))
def test_relative_entropy_lies_within_minus_1_and_1_and_turns_with_its_sides(a: float, b: float) -> None:
    assert -1.0 <= relative_entropy(a, b) <= 1.0
    assert relative_entropy(a, b) == -relative_entropy(b, a)
    assert relative_entropy(a, a) == 0.0


def test_relative_entropy_by_hand() -> None:
    assert relative_entropy(0.5, 1.5) == 0.5  # the first, the image, is surer
    assert relative_entropy(0.0, 2.0) == 1.0
