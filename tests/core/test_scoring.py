"""Divergence, flips and influence against numbers worked out by hand and against numpy."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modint_guard.chat import parse
from modint_guard.config import Thresholds
from modint_guard.scoring import (
    compare,
    first_word,
    influence,
    is_listed,
    js_divergence,
    js_lower_bound,
    option_distribution,
    plain,
    probe_result,
    score,
    word_distribution,
)
from modint_guard.types import CellScore, Failure, Outcome, Reply
from tests.core.fakes import ask, reply

THRESHOLDS = Thresholds()
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
    assert [plain(token) for token in (" A", "▁A", "ĠA", "A\n")] == ["A"] * 4


def cell(answer: Reply, view: Reply, labels: str = "") -> CellScore:
    found = compare(answer, view, tuple(labels), THRESHOLDS)
    assert found is not None
    return found


def test_lettered_answers_are_compared_exactly_over_the_options() -> None:
    found = cell(reply("A", A=0.6, B=0.2, The=0.2), reply("B", A=0.09, B=0.81, The=0.1), "AB")
    # Renormalised: (3/4, 1/4) against (1/10, 9/10)
    assert found.exact
    assert found.divergence == pytest.approx(oracle({"A": 0.75, "B": 0.25}, {"A": 0.1, "B": 0.9}))
    assert (found.flip, found.reproduces, found.answer) == (True, False, "B")
    assert found.margin == pytest.approx(0.8)
    assert (found.confidence, found.p_answer) == (pytest.approx(0.9), pytest.approx(0.1))
    # delta_logprob is that of the words, not of the renormalised options
    assert found.delta_logprob == pytest.approx(math.log(0.6 / 0.09))
    assert found.entropy == pytest.approx(0.468996, abs=1e-6)


def test_without_all_labels_the_value_is_a_lower_bound() -> None:
    assert not cell(reply("A", A=0.9, B=0.1), reply("A", A=0.9, C=0.1), "AB").exact
    assert not cell(reply("red", red=0.9, A=0.05, B=0.05), reply("red", red=0.9, A=0.05, B=0.05), "AB").exact


def test_a_view_that_agrees_is_no_flip() -> None:
    found = cell(reply("red", red=0.9, blue=0.1), reply("Red", Red=0.7, blue=0.3))
    assert (found.flip, found.reproduces) == (False, True)
    assert found.margin == pytest.approx(-0.4)


def test_a_lead_within_the_noise_is_undecided() -> None:
    found = cell(reply("red", red=0.9, blue=0.1), reply("blue", red=0.48, blue=0.52))
    assert (found.flip, found.reproduces, found.margin) == (None, False, pytest.approx(0.04))


def test_a_word_the_view_does_not_list_counts_as_its_tail_at_most() -> None:
    found = cell(reply("red", red=0.9, blue=0.1), reply("blue", blue=0.97, green=0.02))
    assert found.p_answer == 0.0
    assert found.delta_logprob == pytest.approx(math.log(0.9) - math.log(0.01))


def test_without_log_probabilities_nothing_is_compared() -> None:
    silent = Reply("red", "stop", None, None)
    assert compare(silent, reply("red", red=1.0), (), THRESHOLDS) is None
    assert compare(reply("red", red=1.0), silent, (), THRESHOLDS) is None


def test_influences_by_hand() -> None:
    chat = parse(ask("The ball is blue.\nWhat colour is it?"))
    found = score(
        reply("blue", blue=0.8, red=0.2),
        {
            "no_context": reply("red", blue=0.1, red=0.9),
            "neutral_image": reply("blue", blue=0.9, red=0.1),
            "prior": reply("red", blue=0.4, red=0.6),
        },
        chat,
    )
    f = {name: math.log(p) for name, p in {"cv": 0.8, "v": 0.1, "c": 0.9, "none": 0.4}.items()}
    assert found.influence_text == pytest.approx(((f["cv"] - f["v"]) + (f["c"] - f["none"])) / 2)
    assert found.influence_image == pytest.approx(((f["cv"] - f["c"]) + (f["v"] - f["none"])) / 2)
    assert found.influence_text is not None and found.influence_image is not None
    assert found.influence_text + found.influence_image == pytest.approx(f["cv"] - f["none"])  # efficiency
    assert (found.image_only, found.text_only) == ("red", "blue")
    assert found.relative_entropy == 0.0  # both unimodal answers are 90 : 10


@given(st.tuples(*[st.floats(0.01, 0.99)] * 4))
def test_influences_always_add_up_to_the_whole_effect(p: tuple[float, float, float, float]) -> None:
    chat = parse(ask("The ball is blue.\nWhat colour is it?"))
    names = ("no_context", "neutral_image", "prior")
    views = {name: reply("a", a=x, b=1 - x) for name, x in zip(names, p[1:], strict=True)}
    found = score(reply("a", a=p[0], b=1 - p[0]), views, chat)
    assert found.influence_text is not None and found.influence_image is not None
    assert found.influence_text + found.influence_image == pytest.approx(math.log(p[0] / p[3]), abs=1e-9)


def test_without_a_context_the_image_is_the_only_player() -> None:
    chat = parse(ask("What colour is it?"))
    found = score(reply("red", red=0.9, blue=0.1), {"neutral_image": reply("blue", red=0.1, blue=0.9)}, chat)
    assert found.influence_text is None
    assert found.influence_image == pytest.approx(math.log(9))
    assert (found.image_only, found.text_only, found.relative_entropy) == (None, "blue", None)
    assert influence({}, has_context=True) == (None, None)


def test_views_that_failed_are_named_and_never_guessed() -> None:
    chat = parse(ask("It is blue.\nWhat colour is it?"))
    found = score(
        reply("blue", blue=1.0),
        {
            "no_context": Failure(Outcome.TIMEOUT, "timeout"),
            "neutral_image": Failure(Outcome.ERROR, "upstream_error"),
            "prior": Reply("red", "stop", None, None),
        },
        chat,
    )
    assert found.missing == {
        "no_context": "timeout",
        "neutral_image": "upstream_error",
        "prior": "no_logprobs",
    }
    assert (found.cells, found.influence_text, found.image_only) == ({}, None, None)


def test_a_row_of_the_report_counts_tokens_and_says_what_happened() -> None:
    chat = parse(ask("What colour is it?"))
    answer = reply("red", red=0.9, blue=0.1)
    row = probe_result("neutral_image", answer, reply("blue", red=0.1, blue=0.9), chat)
    assert (row.outcome, row.flip, row.answer, row.tokens) == (Outcome.FLIPPED, True, "blue", 31)
    assert probe_result("noop", answer, answer, chat).outcome is Outcome.CONSISTENT
    assert probe_result("noop", answer, reply("blue", red=0.5, blue=0.5), chat).outcome is not Outcome.FLIPPED
    late = probe_result("prior", answer, Failure(Outcome.TIMEOUT, "timeout", 12.0), chat)
    assert (late.outcome, late.divergence, late.ms) == (Outcome.TIMEOUT, None, 12.0)
    silent = probe_result("prior", answer, Reply("red", "stop", None, None, 30, 1), chat)
    assert (silent.outcome, silent.tokens) == (Outcome.ERROR, 31)


def test_of_a_longer_answer_a_view_shows_the_first_word() -> None:
    cut = Reply("The ball", "length", "The", logs(The=0.9, It=0.1))
    assert cell(reply("It", It=0.9, The=0.1), cut).answer == "The"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (" blue.", "blue"),
        ("(a) red", "A"),
        ("B: it is", "B"),
        ("**No**", "No"),
        ("5 balls", "5"),
        ("?!", "?!"),
    ],
)
def test_a_given_answer_begins_with_its_first_word_or_label(text: str, word: str) -> None:
    assert first_word(text, ("A", "B")) == word


def test_a_word_is_listed_whole_or_not_at_all() -> None:
    late = Failure(Outcome.TIMEOUT, "timeout")
    lists = (late, Reply("", None, None, {" Blue": -0.1, "straw": -2.0}))
    assert is_listed("blue", lists)
    assert not is_listed("strawberry", lists)
    assert not is_listed("blue", (late, Reply("blue", None, "blue", None)))
