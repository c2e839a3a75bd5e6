"""What a perturbation does to answers, worked out by hand."""

import math

import pytest

from modint_guard.evaluation.effects import EFFECTS, Answered, effect, shares
from tests.core.items import DIGIT, LETTERED

SURE, EVEN = {"3": 0.8, "7": 0.2}, {"3": 0.5, "7": 0.5}


def of(text: str, index: int = 0, options: dict[str, float] | None = None) -> Answered:
    return Answered(DIGIT.replace(id=f"digit-{index}", source=""), text, options)


def test_every_answer_counts_also_one_that_states_no_choice() -> None:
    found = [of("3", 0), of("7", 1), of("3 or maybe 7", 2), of("", 3)]
    assert [each.unparsable for each in found] == [False, False, True, True]
    row = shares(found)
    assert (row["n"], row["accuracy"], row["unparsable"]) == (4, 0.25, 0.5)
    assert row["ci_low"] <= 0.25 <= row["ci_high"]


def test_a_letter_is_read_by_the_options_and_an_article_is_none() -> None:
    assert not Answered(LETTERED, "C").unparsable
    assert Answered(LETTERED, "A dog").unparsable


def test_a_free_answer_is_never_unparsable() -> None:
    free = DIGIT.replace(form="free", choices=(), answer="a red bus", wrong="")
    assert not Answered(free, "whatever").unparsable


def test_flips_are_told_by_direction() -> None:
    clean = [of("3", 0), of("3", 1), of("7", 2), of("7", 3), of("7", 4)]
    lied = [of("7", 0), of(" 3.", 1), of("3", 2), of("5", 3), of("7", 4)]
    found = effect(clean, lied)
    assert tuple(found) == EFFECTS
    assert (found["harmful_flip"], found["beneficial_flip"], found["neutral_flip"]) == (0.2, 0.2, 0.2)
    assert found["change"] == 0.0  # two right before, two after
    assert [found[name] for name in ("js", "js_low", "delta_logprob_answer")] == [None, None, None]


def test_distributions_move_by_js_and_by_log_probability() -> None:
    found = effect([of("3", 0, SURE), of("3", 1)], [of("3", 0, EVEN), of("3", 1)])
    # m = (0.65, 0.35): half of 0.8 log2(0.8/0.65) + 0.2 log2(0.2/0.35) and of the same for an even chance.
    p = 0.8 * math.log2(0.8 / 0.65) + 0.2 * math.log2(0.2 / 0.35)
    q = 0.5 * math.log2(0.5 / 0.65) + 0.5 * math.log2(0.5 / 0.35)
    assert found["js"] == pytest.approx((p + q) / 2)  # of the one item whose distributions are known
    assert found["delta_logprob_answer"] == pytest.approx(math.log(0.5 / 0.8))
    assert found["delta_logprob_wrong"] == pytest.approx(math.log(0.5 / 0.2))


def test_where_an_option_is_in_no_list_the_divergence_is_a_lower_bound() -> None:
    top = {"3": math.log(0.5), "7": math.log(0.5)}
    clean = [of("3", 0, SURE), Answered(DIGIT.replace(id="digit-1", source=""), "3", None, top)]
    found = effect(clean, clean)
    assert (found["js"], found["js_exact"]) == (0.0, 0.5)


def test_nothing_moved_is_no_effect() -> None:
    same = [of("3", index, SURE) for index in range(20)]
    found = effect(same, same)
    assert found["js"] == found["harmful_flip"] == found["delta_logprob_wrong"] == 0.0
    assert [found["change_low"], found["change_high"]] == pytest.approx([-0.13911, 0.13911], abs=1e-5)


def test_an_impossible_option_moves_by_a_finite_amount() -> None:
    found = effect([of("3", 0, {"3": 1.0, "7": 0.0})], [of("7", 0, {"3": 0.0, "7": 1.0})])
    assert found["js"] == 1.0
    assert found["delta_logprob_answer"] == pytest.approx(math.log(1e-12))


def test_answers_to_other_items_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="of the same items, in the same order"):
        effect([of("3", 0)], [of("3", 1)])
