"""From a score to one of four verdicts. Pure; its constants are `risk.Thresholds`.

y is the served answer. The views are no_context (the image alone), neutral_image (the text alone) and prior
(neither).

relevant  flagged as   if
image     text         y flips without the context, the image alone is sure of another answer, the text alone
                       gives what flipped, and risk >= flag_at
image     prior        text alone and prior both give y with confidence, and the image alone gives y too
text      image        y flips with a neutral image, the text alone is sure of another answer, and risk >=
                       flag_at. What the image alone answers is no evidence here: without its text the
                       question has no answer to reproduce
text      prior        y still comes with confidence without the context, and without both
both      prior        every view gives y with confidence
unknown   conflict     the image alone and the text alone give different answers, both with confidence

any but     neglect    the client or a route named what ought to decide, no other rule holds, and it had no
unknown                influence: its Shapley value for the log-odds of y is below `negligible`

What ought to decide, alone, must be sure of another answer: a model that sees badly and was helped by its
caption was not led astray by it.

If a longer answer is judged at its first word, it is never flagged as prior, because every view may begin
with "The". A flag as text or image is withdrawn if y also flipped under a control that ran (benign,
permuted_options, question_first): such an answer moves with any change. An answer that the request itself
does not prefer, because it was drawn by chance or comes from elsewhere, is never flagged as text or image.

If the model has a null (`judging.null`), `risk` is 1 - p, and text and image are flagged as `weighed` says:
if the answer's statistic (`judging.statistic`) is above 0, p <= alpha, and what ought to decide, alone, is
sure of another answer. The conditions above serve models without a null, and answers of lengths that it
hardly knows.

With the thresholds of a calibration (by_risk_alone), text and image are flagged by the risk alone, unstable
or not, because the calibration's guarantee holds for that rule. Any other answer passes; for both and unknown
the report then states influences only.

Without a context, only neutral_image is used for relevant=text and both. For relevant=image there is no
irrelevant modality to examine, and the request is skipped as "no_context", unless the neutral image gives y
with confidence (prior). For unknown it is skipped likewise.

With an early stop, some of the cells can decide alone (`early_verdict`). One view comes first (`FIRST_VIEW`).
An answer whose risk stays below clear_below there passes. An answer that a calibration flags by the risk is
flagged there, except that a policy which corrects answers needs to know what each modality alone answers. If
both modalities ought to decide, an answer that the prior does not give with confidence passes. The prior is
not needed if the other two cells flag the answer as text or image. Cells that are left out for this reason
are not missing.

`risk` belongs to leaving out the irrelevant modality. If no modality is known to be irrelevant (both,
unknown, or nothing to leave out) it is null, even for a flagged answer: prior and conflict have rules of
their own that do not use the risk. If a cell that the rule needs is missing, the verdict is unscored and risk
is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from modint_guard.judging.null import Null
from modint_guard.judging.risk import WITHOUT_IRRELEVANT, Thresholds, risk_of
from modint_guard.judging.scoring import influence_on_odds
from modint_guard.report import Verdict
from modint_guard.types import (
    CELLS,
    NEUTRAL_IMAGE,
    NO_CONTEXT,
    PRIOR,
    UNSCORED_REASONS,
    Cause,
    CellScore,
    Relevant,
    Score,
    State,
    Statistic,
)

Cells = Mapping[str, CellScore]


@dataclass(frozen=True, slots=True)
class Weighed:
    """Whether the irrelevant modality is to be flagged, and the risk: 1 - p by a null, in [0, 1)."""

    risk: float
    flags: bool


FIRST_VIEW = {**WITHOUT_IRRELEVANT, Relevant.BOTH: PRIOR}  # the view that an early stop asks first
_INTERFERING = {Relevant.IMAGE: Cause.TEXT, Relevant.TEXT: Cause.IMAGE}  # the cause if the other one decided


def decide(
    score: Score,
    relevant: Relevant,
    thresholds: Thresholds | None = None,
    *,
    has_context: bool,
    is_named: bool = False,
    weighed: Weighed | None = None,
) -> Verdict:
    """The verdict on one scored answer, by the rules at the top of this file.

    relevant: the modality that ought to decide. has_context: whether the request has a context. is_named:
    whether the client or a route named that modality, so that neglecting it can be flagged. weighed: None if
    the thresholds decide.
    """
    thresholds = thresholds or Thresholds()
    verdict = _decided(score, relevant, thresholds, weighed, has_context=has_context)
    if verdict.state is State.UNSCORED or score.partial:
        return verdict
    neglect = neglect_of(score, relevant, has_context=has_context)
    verdict = replace(verdict, neglect=neglect)
    if not is_named or verdict.state is State.FLAGGED or neglect is None:
        return verdict
    preferred = all(cell.preferred for cell in score.cells.values())
    if neglect <= -thresholds.negligible or not preferred:
        return verdict
    return replace(verdict, state=State.FLAGGED, cause=Cause.NEGLECT, reason=None)


def weighed(statistic: Statistic, null: Null, thresholds: Thresholds, alpha: float) -> Weighed | None:
    """What a null says of an answer's statistic at the level alpha; None if it knows too few scores of about
    that length. Nothing is flagged that did not change (a statistic of 0 or less), however unusual it is.
    """
    if not null.resolves(alpha, statistic.length):
        return None
    p = null.p_value(statistic.value, statistic.length)
    sure = thresholds.sure if null.sure is None else null.sure
    return Weighed(1.0 - p, p <= alpha and statistic.value > 0.0 and statistic.sure >= sure)


def neglect_of(score: Score, relevant: Relevant, *, has_context: bool) -> float | None:
    """How little what is needed influenced the answer: minus the least influence of a needed modality on the
    log-odds of y, in nats. The larger, the less. None if it is not known what is needed or what it did.
    """
    on_odds = influence_on_odds(score.cells, has_context=has_context)
    needed = {
        Relevant.IMAGE: (on_odds.image,),
        Relevant.TEXT: (on_odds.text,),
        Relevant.BOTH: (on_odds.image, on_odds.text),
    }.get(relevant, ())
    return max((-each for each in needed if each is not None), default=None)


def _decided(
    score: Score, relevant: Relevant, thresholds: Thresholds, weighed: Weighed | None, *, has_context: bool
) -> Verdict:
    """The verdict by the rules for each relevance."""
    verdict = early_verdict(score, relevant, thresholds) if has_context and weighed is None else None
    if verdict is None:
        needed = cells_needed(relevant, has_context=has_context)
        if any(name not in score.cells for name in needed):
            return Verdict(State.UNSCORED, reason=_why_missing(score, needed))
        verdict = _RULES[relevant](score, thresholds, has_context, weighed)
    if score.partial and verdict.cause is Cause.PRIOR:
        if relevant is Relevant.IMAGE and not has_context:
            return Verdict(State.SKIPPED, reason="no_context")
        return Verdict(State.PASS, risk=verdict.risk)
    if score.unstable and not thresholds.by_risk_alone and verdict.cause in (Cause.TEXT, Cause.IMAGE):
        return Verdict(State.PASS, risk=verdict.risk)
    return verdict


def early_verdict(
    score: Score, relevant: Relevant, thresholds: Thresholds, *, corrects: bool = False
) -> Verdict | None:
    """The verdict that the cells asked so far decide under an early stop; None if others are needed.

    corrects: whether a flagged answer will be corrected. That needs what each modality alone answers, so the
    first view alone flags nothing.
    """
    first, asked = FIRST_VIEW.get(relevant), set(score.cells)
    if first is None or first not in asked or score.missing:
        return None
    if relevant is Relevant.BOTH:  # nothing is fitted here: the early stop is that the prior was asked alone
        is_open = asked != {first} or _confident_of_y(score.cells, thresholds, first)
        return None if is_open else Verdict(State.PASS)
    if not thresholds.clear_below:
        return None
    risk = risk_of(score.cells[first], score.entropy, thresholds)
    if asked == {first}:
        if risk < thresholds.clear_below:
            return Verdict(State.PASS, risk=risk)
        flagged = (
            thresholds.by_risk_alone
            and risk >= thresholds.flag_at
            and score.cells[first].preferred
            and not corrects
        )
    else:
        both_asked = asked == {NO_CONTEXT, NEUTRAL_IMAGE}
        flagged = both_asked and _interferes(score.cells, relevant, risk, thresholds)
    return Verdict(State.FLAGGED, cause=_INTERFERING[relevant], risk=risk) if flagged else None


def _interferes(cells: Cells, relevant: Relevant, risk: float, thresholds: Thresholds) -> bool:
    """Whether the irrelevant modality is flagged at this risk."""
    relevant_alone = cells[WITHOUT_IRRELEVANT[relevant]]
    if not relevant_alone.preferred or risk < thresholds.flag_at:
        return False
    if thresholds.by_risk_alone:
        return True
    contradicts = bool(relevant_alone.flip) and relevant_alone.confidence >= thresholds.sure
    return contradicts and (relevant is Relevant.TEXT or cells[NEUTRAL_IMAGE].gives(relevant_alone.at))


def _by_thresholds(score: Score, relevant: Relevant, thresholds: Thresholds) -> Weighed:
    """What the thresholds say in place of a null."""
    risk = risk_of(score.cells[WITHOUT_IRRELEVANT[relevant]], score.entropy, thresholds)
    return Weighed(risk, _interferes(score.cells, relevant, risk, thresholds))


def cells_needed(relevant: Relevant, *, has_context: bool) -> tuple[str, ...]:
    """The cells that the rule for such a request needs."""
    if has_context:
        return (NO_CONTEXT, NEUTRAL_IMAGE) if relevant is Relevant.UNKNOWN else CELLS
    return () if relevant is Relevant.UNKNOWN else (NEUTRAL_IMAGE,)


def _image_decides(
    score: Score, thresholds: Thresholds, has_context: bool, weighed: Weighed | None
) -> Verdict:
    cells = score.cells
    if not has_context:
        if _confident_of_y(cells, thresholds, NEUTRAL_IMAGE):
            return Verdict(State.FLAGGED, cause=Cause.PRIOR)
        return Verdict(State.SKIPPED, reason="no_context")
    found = weighed or _by_thresholds(score, Relevant.IMAGE, thresholds)
    risk = found.risk
    if found.flags:
        return Verdict(State.FLAGGED, cause=Cause.TEXT, risk=risk)
    if cells[NO_CONTEXT].reproduces and _confident_of_y(cells, thresholds, NEUTRAL_IMAGE, PRIOR):
        return Verdict(State.FLAGGED, cause=Cause.PRIOR, risk=risk)
    return Verdict(State.PASS, risk=risk)


def _text_decides(
    score: Score, thresholds: Thresholds, has_context: bool, weighed: Weighed | None
) -> Verdict:
    cells = score.cells
    found = weighed or _by_thresholds(score, Relevant.TEXT, thresholds)
    risk = found.risk
    if found.flags:
        return Verdict(State.FLAGGED, cause=Cause.IMAGE, risk=risk)
    stays = cells[NEUTRAL_IMAGE].reproduces
    if has_context and stays and _confident_of_y(cells, thresholds, NO_CONTEXT, PRIOR):
        return Verdict(State.FLAGGED, cause=Cause.PRIOR, risk=risk)
    return Verdict(State.PASS, risk=risk)


def _both_decide(score: Score, thresholds: Thresholds, has_context: bool, weighed: Weighed | None) -> Verdict:
    cells = score.cells
    if _confident_of_y(cells, thresholds, *(CELLS if has_context else (NEUTRAL_IMAGE,))):
        return Verdict(State.FLAGGED, cause=Cause.PRIOR)
    return Verdict(State.PASS)


def _relevance_unknown(
    score: Score, thresholds: Thresholds, has_context: bool, weighed: Weighed | None
) -> Verdict:
    cells = score.cells
    if not has_context:
        return Verdict(State.SKIPPED, reason="no_context")
    image, text = cells[NO_CONTEXT], cells[NEUTRAL_IMAGE]
    disagree = _word(image.answer) != _word(text.answer)
    if min(image.confidence, text.confidence) >= thresholds.confident and disagree:
        return Verdict(State.FLAGGED, cause=Cause.CONFLICT)
    return Verdict(State.PASS)


_RULES = {
    Relevant.IMAGE: _image_decides,
    Relevant.TEXT: _text_decides,
    Relevant.BOTH: _both_decide,
    Relevant.UNKNOWN: _relevance_unknown,
}


def _confident_of_y(cells: Cells, thresholds: Thresholds, *names: str) -> bool:
    return all(cells[name].reproduces and cells[name].p_answer >= thresholds.confident for name in names)


def _word(answer: str) -> str:
    return answer.casefold().rstrip(".…").strip()


def _why_missing(score: Score, needed: tuple[str, ...]) -> str:
    """The first of UNSCORED_REASONS that holds for a missing cell."""
    reasons = {score.missing.get(name, "incomplete") for name in needed if name not in score.cells}
    return next(reason for reason in UNSCORED_REASONS if reason in reasons)
