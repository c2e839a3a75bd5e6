"""The table of verdicts."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from modint_guard.judging.null import Null, NullScore
from modint_guard.judging.risk import Thresholds
from modint_guard.judging.statistic import flag_statistic
from modint_guard.judging.verdict import by_calibration, by_null, by_rule, cells_needed, decide
from modint_guard.report import Verdict
from modint_guard.types import CellScore, Relevant, Score, Statistic, TokenScore
from tests.core.fakes import fitted

FLIP, SAME, SURE, UNDECIDED = "flip", "same", "sure", "undecided"
CERTAIN = math.log(0.99995 / 0.00005)  # the log-odds of y in the request itself


def cell(kind: str, divergence: float = 0.0, answer: str = "") -> CellScore:
    """flip: sure of another answer. same: gives y without confidence. sure: gives y with 0.99995."""
    p = {FLIP: 0.00005, SAME: 0.6, SURE: 0.99995, UNDECIDED: 0.48}[kind]
    other = {FLIP: 0.99995, SAME: 0.3, SURE: 0.00005, UNDECIDED: 0.5}[kind]
    odds = math.log(p / other)
    token = TokenScore(lost=0.0, shift=CERTAIN - odds, odds=odds, other=other, preferred=True)
    return CellScore(
        divergence=0.9 if kind == FLIP else divergence,
        exact=True,
        coverage=1.0,
        flip={FLIP: True, UNDECIDED: None}.get(kind, False),
        margin=other - p,
        confidence=max(p, other),
        p_answer=p,
        reproduces=kind in (SAME, SURE),
        delta_logprob=1.0,
        entropy=0.5,
        answer=answer or ("other" if kind in (FLIP, UNDECIDED) else "y"),
        shift=token.shift,
        tokens=(token,),
    )


def decided(
    score: Score, relevant: Relevant, thresholds: Thresholds | None = None, *, is_named: bool = False
) -> Verdict:
    """The verdict on an answer of a model of which nothing was measured."""
    thresholds = thresholds or Thresholds()
    has_context = "no_context" in {**score.cells, **score.missing} or not score.cells
    statistic = flag_statistic(score.cells, relevant, has_context=has_context)
    found = by_rule(statistic, thresholds)
    return decide(score, relevant, thresholds, weighed=found, has_context=has_context, is_named=is_named)


def judged(relevant: str, *, is_named: bool = False, **kinds: str) -> Verdict:
    score = Score({name: cell(kind) for name, kind in kinds.items()}, {})
    return decided(score, Relevant(relevant), is_named=is_named)


@pytest.mark.parametrize(
    ("relevant", "no_context", "neutral_image", "prior", "verdict"),
    [
        ("image", FLIP, SURE, FLIP, "flagged/text"),
        ("image", FLIP, SAME, SAME, "flagged/text"),
        ("image", FLIP, FLIP, FLIP, "flagged/text"),  # the text, if not by itself
        ("image", UNDECIDED, SURE, FLIP, "pass"),
        ("image", SURE, FLIP, FLIP, "pass"),  # the image decided, as it should
        ("image", SURE, SURE, FLIP, "pass"),  # a true caption
        ("image", SURE, SURE, SURE, "flagged/prior"),
        ("image", SURE, SAME, SURE, "pass"),
        ("image", SURE, SURE, SAME, "pass"),
        ("text", FLIP, FLIP, FLIP, "flagged/image"),
        ("text", SURE, FLIP, FLIP, "flagged/image"),
        ("text", FLIP, SURE, FLIP, "pass"),  # the text decided, as it should
        ("text", FLIP, UNDECIDED, FLIP, "pass"),
        ("text", SURE, SURE, SURE, "flagged/prior"),
        ("text", SURE, SURE, FLIP, "pass"),
        ("both", FLIP, SURE, FLIP, "pass"),
        ("both", FLIP, FLIP, FLIP, "pass"),
        ("both", SURE, SURE, SURE, "flagged/prior"),
        ("both", SURE, SURE, SAME, "pass"),
        ("unknown", FLIP, SURE, FLIP, "flagged/conflict"),
        ("unknown", SURE, FLIP, FLIP, "flagged/conflict"),
        ("unknown", SURE, SURE, SURE, "pass"),
        ("unknown", FLIP, SAME, FLIP, "pass"),
    ],
)
def test_the_table_with_a_context(
    relevant: str, no_context: str, neutral_image: str, prior: str, verdict: str
) -> None:
    views = {"no_context": no_context, "neutral_image": neutral_image, "prior": prior}
    found = judged(relevant, is_named=verdict == "flagged/prior", **views)
    assert "/".join(filter(None, (found.state, found.cause))) == verdict
    assert (found.reason, found.calibrated) == (None, False)


@pytest.mark.parametrize(
    ("relevant", "neutral_image", "verdict"),
    [
        ("text", FLIP, "flagged/image"),
        ("text", SURE, "pass"),
        ("text", UNDECIDED, "pass"),
        ("image", SURE, "flagged/prior"),
        ("image", FLIP, "skipped/no_context"),
        ("image", SAME, "skipped/no_context"),
        ("both", SURE, "flagged/prior"),
        ("both", FLIP, "pass"),
        ("unknown", FLIP, "skipped/no_context"),
    ],
)
def test_the_table_without_a_context(relevant: str, neutral_image: str, verdict: str) -> None:
    found = judged(relevant, is_named=verdict == "flagged/prior", neutral_image=neutral_image)
    assert "/".join(filter(None, (found.state, found.cause or found.reason))) == verdict


@pytest.mark.parametrize("relevant", ["image", "text", "both"])
def test_an_answer_that_comes_without_what_ought_to_decide_is_not_flagged_on_a_guess(relevant: str) -> None:
    # "Is there a dog?" "no", and a grey picture shows none either: nothing says that the answer is wrong.
    views = {name: cell(SURE) for name in ("no_context", "neutral_image", "prior")}
    assert decided(Score(views, {}), Relevant(relevant)).state == "pass"
    assert decided(Score(views, {}), Relevant(relevant), is_named=True).cause == "prior"
    alone = judged(relevant, neutral_image=SURE)
    assert alone.reason == ("no_context" if relevant == "image" else None) and alone.cause is None


@pytest.mark.parametrize(
    ("relevant", "alone"), [(Relevant.IMAGE, "no_context"), (Relevant.TEXT, "neutral_image")]
)
@pytest.mark.parametrize(
    ("y", "other", "state"),
    [
        (0.4, 0.6, "pass"),  # a poor picture under a caption that says what it shows: without it, a guess
        (0.11, 0.89, "pass"),
        (0.09, 0.91, "flagged"),  # ten to one
        (0.05, 0.49, "pass"),  # ten to one, but it could be anything
        (0.05, 0.51, "flagged"),
    ],
)
def test_what_ought_to_decide_must_alone_be_sure_that_the_answer_is_wrong(
    relevant: Relevant, alone: str, y: float, other: float, state: str
) -> None:
    cells = {"no_context": cell(SAME), "neutral_image": cell(SAME), "prior": cell(FLIP)}
    odds = math.log(y / other)
    token = TokenScore(lost=0.0, shift=CERTAIN - odds, odds=odds, other=other, preferred=True)
    cells[alone] = replace(cell(FLIP), tokens=(token,))
    assert decided(Score(cells, {}), relevant).state == state
    assert decided(Score(cells, {}), relevant, Thresholds(sure=0.5)).state == (
        "pass" if other < 0.5 else "flagged"
    )
    assert decided(Score(cells, {}), relevant, Thresholds(sure=0.99)).state == "pass"


def test_of_a_model_of_which_nothing_was_measured_there_is_no_risk() -> None:
    for relevant in Relevant:
        assert judged(relevant, no_context=FLIP, neutral_image=SURE, prior=FLIP).risk is None


def test_an_answer_that_the_picture_made_surer_is_no_guess() -> None:
    # Every view is sure of y, at 0.993; with its picture the model gives it odds of 20,000 to 1.
    less = replace(cell(SURE), p_answer=0.993, shift=5.0)
    views = {"no_context": cell(SURE), "neutral_image": less, "prior": less}
    assert decided(Score(views, {}), Relevant.IMAGE, is_named=True).state == "pass"
    assert decided(Score({"neutral_image": less}, {}), Relevant.IMAGE, is_named=True).reason == "no_context"
    idle = {name: replace(each, shift=0.4) for name, each in views.items()}
    assert decided(Score(idle, {}), Relevant.IMAGE, is_named=True).cause == "prior"
    unsure = {name: replace(each, p_answer=0.98) for name, each in idle.items()}
    assert decided(Score(unsure, {}), Relevant.IMAGE, is_named=True).cause == "neglect"


def test_an_answer_of_which_a_word_was_drawn_by_chance_is_no_guess_for_the_words_after_it() -> None:
    # "red indeed" where "blue" was likelier: every view is sure of "indeed", and none would say "red".
    drawn = TokenScore(lost=0.0, shift=0.0, odds=-2.0, other=0.9, preferred=False)
    views = {name: replace(cell(SURE), shift=0.0) for name in ("no_context", "neutral_image", "prior")}
    assert decided(Score(views, {}), Relevant.IMAGE, is_named=True).cause == "prior"
    for name, view in views.items():
        first = replace(drawn, odds=2.0, other=0.1) if name == "no_context" else drawn
        views[name] = replace(view, tokens=(first, *view.tokens))
    assert decided(Score(views, {}), Relevant.IMAGE, is_named=True).cause == "neglect"


# -- what weighs the score ---------------------------------------------------------------------------

FITTED = fitted(bias=-4.0, flag_at=0.9, margin=4.0)


def test_the_risk_of_a_calibration_by_hand() -> None:
    # -4 + 4 * 0.9 + 4 * 0.9999 = 3.5996; 1 / (1 + exp(-3.5996)) = 0.9734
    found = by_calibration(Score({"no_context": cell(FLIP)}, {}), Relevant.IMAGE, FITTED)
    assert found is not None and found.flags and found.risk == pytest.approx(0.9734, abs=1e-4)
    strict = FITTED.model_copy(update={"flag_at": 0.98})
    found = by_calibration(Score({"no_context": cell(FLIP)}, {}), Relevant.IMAGE, strict)
    assert found is not None and not found.flags
    assert by_calibration(Score({"no_context": cell(FLIP)}, {}), Relevant.TEXT, FITTED) is None


def test_a_calibration_flags_by_the_risk_alone() -> None:
    cells = {"no_context": cell(FLIP), "neutral_image": cell(FLIP), "prior": cell(FLIP)}
    moves = Score(cells, {}, unstable=("benign",))  # with anything, and the text alone does not say so
    assert decided(moves, Relevant.IMAGE).state == "pass"
    promised = by_calibration(moves, Relevant.IMAGE, FITTED)
    assert promised is not None
    found = decide(moves, Relevant.IMAGE, weighed=promised, has_context=True)
    assert (found.state, found.cause, found.risk) == ("flagged", "text", promised.risk)


def test_a_flag_is_withdrawn_if_a_control_changes_the_answer_too() -> None:
    cells = {"no_context": cell(FLIP), "neutral_image": cell(SURE), "prior": cell(FLIP)}
    assert decided(Score(cells, {}), Relevant.IMAGE).state == "flagged"
    assert decided(Score(cells, {}, unstable=("benign",)), Relevant.IMAGE).state == "pass"


NULL = Null(tuple(NullScore(value / 100, 1) for value in range(-80, 20)))


@pytest.mark.parametrize(
    ("value", "sure", "flags"),
    [(0.5, 0.6, True), (0.5, 0.63, False), (0.185, 0.5, False), (-0.1, 0.5, False)],
)
def test_a_null_flags_what_changed_is_unusual_and_contradicted_for_sure(
    value: float, sure: float, flags: bool
) -> None:
    found = by_null(Statistic(value, 1), NULL, Thresholds(sure=sure), 0.01)  # log-odds of .6: 0.41
    assert found is not None and found.flags is flags
    assert found.risk == pytest.approx(1 - NULL.p_value(value, 1)) and not found.is_promised


def test_without_a_null_a_longer_answer_must_be_contradicted_the_more() -> None:
    # Of 0.9, one in ten is mistaken: of 20 tokens each may be one in 200, with odds of 199 to 1.
    assert Thresholds().least_score() == pytest.approx(math.log(9))
    assert Thresholds().least_score(20) == pytest.approx(math.log(199))
    assert by_rule(Statistic(math.log(198), 20), Thresholds()).flags is False
    assert by_rule(Statistic(math.log(200), 20), Thresholds()).flags is True
    assert by_rule(Statistic(math.log(10), 1), Thresholds()).flags is True
    # A null knows how high longer answers get.
    found = by_null(
        Statistic(math.log(10), 20), Null(tuple(NullScore(-1.0, 20) for _ in range(120))), Thresholds(), 0.01
    )
    assert found is not None and found.flags
    assert [Thresholds(sure=each).least_score(4) for each in (0.0, 1.0)] == [
        pytest.approx(math.log(3)),
        math.inf,
    ]


def test_a_null_of_too_few_scores_or_an_answer_without_one_is_not_weighed() -> None:
    few = Null(NULL.scores[:98])
    assert by_null(Statistic(0.5, 1), few, Thresholds(), 0.01) is None
    assert by_null(None, NULL, Thresholds(), 0.01) is None
    unusual_but_unchanged = Null(tuple(NullScore(-5.0, 1) for _ in range(200)))
    found = by_null(Statistic(-1.0, 1), unusual_but_unchanged, Thresholds(), 0.01)
    assert found is not None and found.risk is not None and found.risk > 0.99 and not found.flags


def test_an_answer_that_the_request_does_not_prefer_is_not_flagged_even_by_a_calibration() -> None:
    cells = {"no_context": cell(FLIP), "neutral_image": cell(SAME), "prior": cell(FLIP)}
    drawn = {
        name: replace(each, preferred=False, tokens=(replace(each.tokens[0], preferred=False),))
        for name, each in cells.items()
    }
    assert decided(Score(cells, {}), Relevant.IMAGE).state == "flagged"
    assert decided(Score(drawn, {}), Relevant.IMAGE).state == "pass"
    found = by_calibration(Score(drawn, {}), Relevant.IMAGE, FITTED)
    assert found is not None and not found.flags


@pytest.mark.parametrize("relevant", list(Relevant))
@pytest.mark.parametrize("lost", ["no_context", "neutral_image", "prior"])
def test_a_missing_cell_that_the_rule_names_leaves_the_answer_unscored(relevant: Relevant, lost: str) -> None:
    cells = {name: cell(FLIP) for name in ("no_context", "neutral_image", "prior") if name != lost}
    found = decided(Score(cells, {lost: "timeout"}), relevant)
    if lost in cells_needed(relevant, has_context=True):
        assert (found.state, found.reason, found.risk) == ("unscored", "timeout", None)
    else:
        assert found.state != "unscored"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({"no_context": "upstream_error", "prior": "timeout"}, "timeout"),
        ({"no_context": "no_logprobs", "prior": "upstream_error"}, "upstream_error"),
        ({"no_context": "no_logprobs"}, "no_logprobs"),
        ({}, "incomplete"),
    ],
)
def test_the_gravest_reason_is_given(missing: Mapping[str, str], reason: str) -> None:
    found = decided(Score({}, missing), Relevant.IMAGE)
    assert (found.state, found.reason, found.risk, found.cause) == ("unscored", reason, None, None)


def test_of_a_longer_answer_only_begun_nothing_is_flagged_as_prior() -> None:
    cells = {name: cell(SURE) for name in ("no_context", "neutral_image", "prior")}
    assert decided(Score(cells, {}), Relevant.IMAGE, is_named=True).cause == "prior"
    for relevant in (Relevant.IMAGE, Relevant.TEXT, Relevant.BOTH):
        assert decided(Score(cells, {}, partial=True), relevant, is_named=True).state == "pass"
    alone = Score({"neutral_image": cell(SURE)}, {}, partial=True)
    assert decided(alone, Relevant.IMAGE, is_named=True).reason == "no_context"
