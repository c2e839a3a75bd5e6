"""Flips, influence and mutual information against numbers worked out by hand and against numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.request import parse
from modint_guard.judging.divergence import js_divergence
from modint_guard.judging.risk import Thresholds
from modint_guard.judging.scoring import (
    compare,
    first_word,
    influence,
    influence_on_odds,
    is_listed,
    noise_of,
    pointwise_mutual_information,
    probe_result,
    score,
    shapley,
    with_noise_floor,
)
from modint_guard.types import CellScore, Failure, ProbeOutcome, Reply
from tests.core.fakes import ask, reply

THRESHOLDS = Thresholds()
VALUES = st.floats(-30, 30)


def logs(**probabilities: float) -> dict[str, float]:
    return {token: math.log(p) for token, p in probabilities.items()}


def cell(answer: Reply, view: Reply, labels: str = "") -> CellScore:
    found = compare(answer, view, tuple(labels), THRESHOLDS)
    assert found is not None
    return found


def test_lettered_answers_are_compared_exactly_over_the_options() -> None:
    found = cell(reply("A", A=0.6, B=0.2, The=0.2), reply("B", A=0.09, B=0.81, The=0.1), "AB")
    # Renormalised: (3/4, 1/4) against (1/10, 9/10)
    assert found.exact
    assert found.divergence == pytest.approx(js_divergence({"A": 0.75, "B": 0.25}, {"A": 0.1, "B": 0.9}))
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


def test_of_an_answer_that_the_request_does_not_prefer_the_margin_is_what_the_view_adds() -> None:
    drawn = reply("green", red=0.5, blue=0.3, green=0.2)
    same = cell(drawn, reply("red", red=0.5, blue=0.3, green=0.2))
    assert (same.preferred, same.flip, same.margin, same.divergence) == (False, None, 0.0, 0.0)
    moved = cell(drawn, reply("red", red=0.9, green=0.1))
    assert (moved.flip, moved.margin) == (None, pytest.approx(0.8 - 0.3))
    kept = cell(drawn, reply("green", red=0.1, green=0.9))
    assert (kept.flip, kept.reproduces, kept.margin) == (False, True, -1.0)
    # A lead within the noise is no preference: the request might as well have said the other word.
    assert not cell(reply("red", red=0.51, blue=0.49), reply("blue", blue=0.9, red=0.1)).preferred
    labels = cell(reply("A", A=0.3, B=0.6, The=0.1), reply("B", A=0.3, B=0.6, The=0.1), "AB")
    assert (labels.exact, labels.preferred, labels.flip, labels.margin) == (True, False, None, 0.0)


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
    assert influence({}, has_context=True) == (None, None, None)


def test_views_that_failed_are_named_and_never_guessed() -> None:
    chat = parse(ask("It is blue.\nWhat colour is it?"))
    found = score(
        reply("blue", blue=1.0),
        {
            "no_context": Failure(ProbeOutcome.TIMEOUT, "timeout"),
            "neutral_image": Failure(ProbeOutcome.ERROR, "upstream_error"),
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
    assert (row.outcome, row.flip, row.answer, row.tokens) == (ProbeOutcome.FLIPPED, True, "blue", 31)
    assert probe_result("noop", answer, answer, chat).outcome is ProbeOutcome.CONSISTENT
    assert (
        probe_result("noop", answer, reply("blue", red=0.5, blue=0.5), chat).outcome
        is not ProbeOutcome.FLIPPED
    )
    late = probe_result("prior", answer, Failure(ProbeOutcome.TIMEOUT, "timeout", 12.0), chat)
    assert (late.outcome, late.divergence, late.ms) == (ProbeOutcome.TIMEOUT, None, 12.0)
    silent = probe_result("prior", answer, Reply("red", "stop", None, None, 30, 1), chat)
    assert (silent.outcome, silent.tokens) == (ProbeOutcome.ERROR, 31)


def test_of_a_longer_answer_a_view_shows_the_first_word() -> None:
    cut = Reply("The ball", "length", "The", logs(The=0.9, It=0.1))
    assert cell(reply("It", It=0.9, The=0.1), cut).answer == "The"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("turkey", "turkey…"),
        ("cow.", "cow"),
        ("T-shirt and", "T-shirt"),
        ("T-", "T-…"),
        ("A. red", "A"),
        ("?", "tur"),
    ],
)
def test_a_word_that_may_have_been_cut_off_says_so(text: str, shown: str) -> None:
    cut = Reply(text, "length", "tur", logs(tur=0.9, c=0.1))
    assert cell(reply("c", c=0.9, tur=0.1), cut).answer == shown


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
    late = Failure(ProbeOutcome.TIMEOUT, "timeout")
    lists = (late, Reply("", None, None, {" Blue": -0.1, "straw": -2.0}))
    assert is_listed("blue", lists)
    assert not is_listed("strawberry", lists)
    assert not is_listed("blue", (late, Reply("blue", None, "blue", None)))


@given(VALUES, VALUES, VALUES, VALUES)
def test_shapley_values_are_efficient_and_symmetric(both: float, a: float, b: float, none: float) -> None:
    found, turned = (
        shapley(both, first=a, second=b, neither=none),
        shapley(both, first=b, second=a, neither=none),
    )
    assert found.text is not None and found.image is not None
    assert found.text + found.image == pytest.approx(both - none, abs=1e-9)
    assert (found.text, found.image) == pytest.approx((turned.image, turned.text), abs=1e-9)
    assert found.synergy == pytest.approx(turned.synergy, abs=1e-9)


@given(VALUES, VALUES)
def test_a_player_that_adds_nothing_has_no_value_and_no_synergy(alone: float, none: float) -> None:
    found = shapley(alone, first=none, second=alone, neither=none)
    assert found == pytest.approx((0.0, alone - none, 0.0), abs=1e-9)


@given(VALUES)
def test_identical_inputs_have_no_influence(value: float) -> None:
    assert shapley(value, first=value, second=value, neither=value) == (0.0, 0.0, 0.0)


def test_synergy_by_hand() -> None:
    # Both must be there: only together they give the answer, log 0.8 against log 0.1 in every other case.
    low, high = math.log(0.1), math.log(0.8)
    found = shapley(high, first=low, second=low, neither=low)
    assert found == pytest.approx((math.log(8) / 2, math.log(8) / 2, math.log(8)))
    # They say the same: each alone gives it all.
    assert shapley(high, first=high, second=high, neither=low).synergy == pytest.approx(-math.log(8))


def test_influence_on_the_odds_is_not_hidden_by_probabilities_near_one() -> None:
    chat = parse(ask("The ball is blue.\nWhat colour is it?"))
    views = {
        "no_context": reply("blue", blue=0.99, red=0.01),
        "neutral_image": reply("blue", blue=0.95, red=0.05),
        "prior": reply("blue", blue=0.95, red=0.05),
    }
    found = score(reply("blue", blue=0.99, red=0.01), views, chat)
    shift = math.log(99) - math.log(19)
    assert found.cells["prior"].shift == pytest.approx(shift)
    on_odds = influence_on_odds(found.cells, has_context=True)
    assert on_odds == pytest.approx((0.0, shift, 0.0), abs=1e-9)
    assert found.influence_image == pytest.approx(math.log(0.99 / 0.95))
    assert influence_on_odds({}, has_context=True) == (None, None, None)


LOGPROBS = st.lists(st.floats(-20, 0), min_size=1, max_size=8)


@given(LOGPROBS, LOGPROBS)
def test_mutual_information_is_the_mean_difference_and_turns_its_sign(a: list[float], b: list[float]) -> None:
    size = min(len(a), len(b))
    own, view = a[:size], b[:size]
    found = pointwise_mutual_information(own, view)
    assert found == pytest.approx(float(np.mean(np.array(own) - np.array(view))), abs=1e-9)
    assert found == -pointwise_mutual_information(view, own)
    assert pointwise_mutual_information(own, own) == 0.0


@pytest.mark.parametrize(("own", "view"), [([], []), ([-0.1], [-0.1, -0.2])])
def test_mutual_information_of_other_tokens_is_refused(own: list[float], view: list[float]) -> None:
    with pytest.raises(ValueError, match="need the same tokens twice"):
        pointwise_mutual_information(own, view)


def test_a_lead_that_noise_could_have_made_is_no_flip() -> None:
    chat = parse(ask("What colour is it?"))
    answer, view = reply("red", red=0.55, blue=0.45), reply("blue", red=0.44, blue=0.56)
    quiet = score(answer, {"neutral_image": view, "noop": answer}, chat)
    assert (quiet.cells["neutral_image"].flip, quiet.noise) == (True, 0.0)
    # The same input moved p(red) by 0.07: a lead of 0.12 may be noise, 2 * 0.07.
    loud = score(answer, {"neutral_image": view, "noop": reply("red", red=0.62, blue=0.38)}, chat)
    assert (loud.cells["neutral_image"].flip, loud.noise) == (None, pytest.approx(0.07))


def test_noise_is_known_only_where_the_same_input_was_asked_again() -> None:
    answer = reply("red", red=0.9, blue=0.1)
    assert noise_of(answer, None) is None
    assert noise_of(answer, Failure(ProbeOutcome.TIMEOUT, "timeout")) is None
    assert noise_of(answer, Reply("red", "stop", None, None)) is None
    assert with_noise_floor(THRESHOLDS, None) == with_noise_floor(THRESHOLDS, 0.01) == THRESHOLDS
    assert with_noise_floor(THRESHOLDS, 0.2).flip_margin == 0.4
    assert with_noise_floor(THRESHOLDS, 0.9).flip_margin == 1.0


def test_a_row_says_how_much_of_both_distributions_was_seen() -> None:
    answer, view = reply("red", red=0.9, blue=0.05), reply("red", red=0.6, blue=0.2)
    assert cell(answer, view).coverage == pytest.approx(0.8)
