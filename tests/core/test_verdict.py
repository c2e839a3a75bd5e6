"""The table of verdicts."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.judging.risk import Thresholds, risk_of
from modint_guard.judging.verdict import cells_needed, decide
from modint_guard.report import Verdict
from modint_guard.types import CellScore, Relevant, Score

FLIP, SAME, SURE, UNDECIDED = "flip", "same", "sure", "undecided"


def cell(kind: str, divergence: float = 0.0, answer: str = "") -> CellScore:
    """flip: sure of another answer. same: gives y without confidence. sure: gives y with 0.99995."""
    p = {FLIP: 0.00005, SAME: 0.6, SURE: 0.99995, UNDECIDED: 0.48}[kind]
    other = {FLIP: 0.99995, SAME: 0.3, SURE: 0.00005, UNDECIDED: 0.5}[kind]
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
    )


def judged(relevant: str, **kinds: str) -> Verdict:
    cells = {name: cell(kind) for name, kind in kinds.items()}
    return decide(Score(cells, {}), Relevant(relevant), has_context="no_context" in kinds)


@pytest.mark.parametrize(
    ("relevant", "no_context", "neutral_image", "prior", "verdict"),
    [
        ("image", FLIP, SURE, FLIP, "flagged/text"),
        ("image", FLIP, SAME, SAME, "flagged/text"),
        ("image", FLIP, FLIP, FLIP, "pass"),  # text and image together, not the text alone
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
    found = judged(relevant, no_context=no_context, neutral_image=neutral_image, prior=prior)
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
    found = judged(relevant, neutral_image=neutral_image)
    assert "/".join(filter(None, (found.state, found.cause or found.reason))) == verdict


def test_a_flip_below_the_threshold_of_risk_passes() -> None:
    cells = {"neutral_image": cell(FLIP)}
    strict = Thresholds(bias=-20.0)
    found = decide(Score(cells, {}), Relevant.TEXT, strict, has_context=False)
    assert found.state == "pass" and found.risk is not None and found.risk < 0.01


@pytest.mark.parametrize(
    ("relevant", "alone"), [(Relevant.IMAGE, "no_context"), (Relevant.TEXT, "neutral_image")]
)
@pytest.mark.parametrize(("confidence", "state"), [(0.6, "pass"), (0.98, "pass"), (0.99, "flagged")])
def test_what_ought_to_decide_must_alone_be_sure_of_another_answer(
    relevant: Relevant, alone: str, confidence: float, state: str
) -> None:
    # A poor picture under a caption that says what it shows: without the caption the model guesses.
    cells = {"no_context": cell(SAME), "neutral_image": cell(SAME), "prior": cell(FLIP)}
    cells[alone] = replace(cell(FLIP), confidence=confidence)
    found = decide(Score(cells, {}), relevant, has_context=True)
    assert found.state == state and found.risk is not None
    anyhow = decide(Score(cells, {}), relevant, Thresholds(sure=0.5), has_context=True)
    assert anyhow.state == "flagged"


def test_an_answer_that_the_request_does_not_prefer_is_not_flagged_even_by_the_risk_alone() -> None:
    cells = {"no_context": cell(FLIP), "neutral_image": cell(SAME), "prior": cell(FLIP)}
    drawn = {name: replace(each, preferred=False) for name, each in cells.items()}
    for thresholds in (Thresholds(), Thresholds(by_risk_alone=True), Thresholds(sure=0.0)):
        assert decide(Score(cells, {}), Relevant.IMAGE, thresholds, has_context=True).state == "flagged"
        assert decide(Score(drawn, {}), Relevant.IMAGE, thresholds, has_context=True).state == "pass"


def test_risk_by_hand() -> None:
    # -4 + 4 * 0.9 + 4 * 0.9999 = 3.5996; 1 / (1 + exp(-3.5996)) = 0.9734
    fitted = Thresholds(bias=-4.0, weight_js=4.0, weight_margin=4.0)
    assert risk_of(cell(FLIP), 0.0, fitted) == pytest.approx(0.9734, abs=1e-4)
    assert risk_of(cell(FLIP), 0.0, Thresholds(bias=-1e6)) == 0.0
    # 0 + 2 * 0.5 bits + 1 * 1 nat = 2; 1 / (1 + exp(-2)) = 0.8808
    more = Thresholds(bias=0.0, weight_js=0.0, weight_margin=0.0, weight_entropy=2.0, weight_pmi=1.0)
    assert risk_of(cell(FLIP), 0.5, more) == pytest.approx(0.8808, abs=1e-4)


@given(st.floats(0, 1), st.floats(0, 1))
def test_risk_grows_with_the_divergence_and_stays_within_0_and_1(a: float, b: float) -> None:
    low, high = (risk_of(cell(SAME, divergence), 0.0, Thresholds()) for divergence in sorted((a, b)))
    assert 0.0 <= low <= high <= 1.0


@pytest.mark.parametrize(
    ("relevant", "has_risk"), [("image", True), ("text", True), ("both", False), ("unknown", False)]
)
def test_there_is_a_risk_only_where_a_modality_is_known_to_be_irrelevant(
    relevant: str, has_risk: bool
) -> None:
    found = judged(relevant, no_context=FLIP, neutral_image=SURE, prior=FLIP)
    assert (found.risk is not None) is has_risk


@pytest.mark.parametrize("relevant", list(Relevant))
@pytest.mark.parametrize("lost", ["no_context", "neutral_image", "prior"])
def test_a_missing_cell_that_the_rule_names_leaves_the_answer_unscored(relevant: Relevant, lost: str) -> None:
    cells = {name: cell(FLIP) for name in ("no_context", "neutral_image", "prior") if name != lost}
    found = decide(Score(cells, {lost: "timeout"}), relevant, has_context=True)
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
    found = decide(Score({}, missing), Relevant.IMAGE, has_context=True)
    assert (found.state, found.reason, found.risk, found.cause) == ("unscored", reason, None, None)


def test_of_a_longer_answer_only_begun_nothing_is_flagged_as_prior() -> None:
    cells = {name: cell(SURE) for name in ("no_context", "neutral_image", "prior")}
    assert decide(Score(cells, {}), Relevant.IMAGE, has_context=True).cause == "prior"
    for relevant in (Relevant.IMAGE, Relevant.TEXT, Relevant.BOTH):
        assert decide(Score(cells, {}, partial=True), relevant, has_context=True).state == "pass"
    alone = Score({"neutral_image": cell(SURE)}, {}, partial=True)
    assert decide(alone, Relevant.IMAGE, has_context=False).reason == "no_context"


def test_a_calibration_flags_by_the_risk_alone() -> None:
    cells = {"no_context": cell(UNDECIDED), "neutral_image": cell(FLIP), "prior": cell(FLIP)}
    alone = Thresholds(bias=3.0, by_risk_alone=True)
    assert decide(Score(cells, {}), Relevant.IMAGE, Thresholds(bias=3.0), has_context=True).state == "pass"
    found = decide(Score(cells, {}, unstable=("benign",)), Relevant.IMAGE, alone, has_context=True)
    assert (found.state, found.cause) == ("flagged", "text")
