"""From scores to one of four verdicts. Pure; the constants are `config.Thresholds`.

With y the served answer and the views no_context (image and question), neutral_image (text alone) and
prior (neither):

relevant  flagged as   when
image     text         y flips without the context, text alone reproduces y, and risk >= flag_at
image     prior        text alone and the prior both give y with confidence, and y stays without the context
text      image        y flips with a neutral image, and risk >= flag_at. What the image alone says is no
                       evidence here: without its text the question has no answer to reproduce
text      prior        without the context and without both, y still comes with confidence
both      prior        every view gives y with confidence
unknown   conflict     image alone and text alone are confident of different answers

Of a longer answer judged at its first word nothing is flagged as prior: every view begins with "The".
A flag as text or image is withdrawn where a control (benign, permuted_options, question_first) ran and y
flipped under it as well: such an answer moves with anything. With thresholds of a calibration (by_risk_alone)
text and image are flagged by the risk alone, unstable or not: its promise holds for that rule. Any other
answer passes; for both and unknown the report then speaks of influence only.

Without a context: relevant=text and both use neutral_image alone; relevant=image has no irrelevant modality
to examine and is skipped as "no_context", unless the neutral image gives y with confidence (prior); unknown
is skipped likewise.

With an early stop some of the cells decide already (`settled`). One view goes first (`FIRST`): an answer
whose risk stays below clear_below passes on it, one that a calibration's thresholds flag by the risk is
flagged on it (but where a policy mends, a flag wants what each modality alone says), and where both decide
one that the prior does not give with confidence passes. The prior is not needed where the other two flag the
answer as text or image. The cells left out are then neither asked nor missing.

`risk` is the logistic of the irrelevant modality's removal. Where no modality is known to be irrelevant
(both, unknown, or nothing to remove) it is null, also when flagged: prior and conflict are rules of
their own, not read from the risk. If a cell that the rule names is missing, the verdict is unscored and
risk null.
"""

from __future__ import annotations

from collections.abc import Mapping

from modint_guard.judging.risk import WITHOUT_IRRELEVANT, Thresholds, risk_of
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
    Verdict,
)

Cells = Mapping[str, CellScore]
FIRST_VIEW = {**WITHOUT_IRRELEVANT, Relevant.BOTH: PRIOR}  # what an early stop asks before all else
_INTERFERING = {Relevant.IMAGE: Cause.TEXT, Relevant.TEXT: Cause.IMAGE}  # what ought not to decide


def decide(
    score: Score, relevant: Relevant, thresholds: Thresholds | None = None, *, has_context: bool
) -> Verdict:
    """The verdict on one scored answer."""
    thresholds = thresholds or Thresholds()
    verdict = early_verdict(score, relevant, thresholds) if has_context else None
    if verdict is None:
        needed = cells_needed(relevant, has_context=has_context)
        if any(name not in score.cells for name in needed):
            return Verdict(State.UNSCORED, reason=_why_missing(score, needed))
        verdict = _RULES[relevant](score, thresholds, has_context)
    if score.partial and verdict.cause is Cause.PRIOR:
        if relevant is Relevant.IMAGE and not has_context:
            return Verdict(State.SKIPPED, reason="no_context")
        return Verdict(State.PASS, risk=verdict.risk)
    if score.unstable and not thresholds.by_risk_alone and verdict.cause in (Cause.TEXT, Cause.IMAGE):
        return Verdict(State.PASS, risk=verdict.risk)
    return verdict


def early_verdict(
    score: Score, relevant: Relevant, thresholds: Thresholds, *, mends: bool = False
) -> Verdict | None:
    """The verdict that some of the cells decide already, under an early stop; None where others are needed.

    mends: a flag is to be mended and wants what each modality alone says, so the first view raises none.
    """
    first, asked = FIRST_VIEW.get(relevant), set(score.cells)
    if first is None or first not in asked or score.missing:
        return None
    if relevant is Relevant.BOTH:  # fitted by nobody: that the prior was asked alone is the early stop
        open_still = asked != {first} or _confident_of_y(score.cells, thresholds, first)
        return None if open_still else Verdict(State.PASS)
    if not thresholds.clear_below:
        return None
    value = risk_of(score.cells[first], score.entropy, thresholds)
    if asked == {first}:
        if value < thresholds.clear_below:
            return Verdict(State.PASS, risk=value)
        flagged = thresholds.by_risk_alone and value >= thresholds.flag_at and not mends
    else:
        each = asked == {NO_CONTEXT, NEUTRAL_IMAGE}
        flagged = each and _interferes(score.cells, relevant, value, thresholds)
    return Verdict(State.FLAGGED, cause=_INTERFERING[relevant], risk=value) if flagged else None


def _interferes(cells: Cells, relevant: Relevant, value: float, thresholds: Thresholds) -> bool:
    """Whether the irrelevant modality is flagged at this risk."""
    followed = (
        cells[NO_CONTEXT].flip and cells[NEUTRAL_IMAGE].reproduces
        if relevant is Relevant.IMAGE
        else cells[NEUTRAL_IMAGE].flip
    )
    return value >= thresholds.flag_at and bool(followed or thresholds.by_risk_alone)


def cells_needed(relevant: Relevant, *, has_context: bool) -> tuple[str, ...]:
    """The cells that the rule for this request names."""
    if has_context:
        return (NO_CONTEXT, NEUTRAL_IMAGE) if relevant is Relevant.UNKNOWN else CELLS
    return () if relevant is Relevant.UNKNOWN else (NEUTRAL_IMAGE,)


def _image_decides(score: Score, thresholds: Thresholds, has_context: bool) -> Verdict:
    cells = score.cells
    if not has_context:
        if _confident_of_y(cells, thresholds, NEUTRAL_IMAGE):
            return Verdict(State.FLAGGED, cause=Cause.PRIOR)
        return Verdict(State.SKIPPED, reason="no_context")
    value = risk_of(cells[NO_CONTEXT], score.entropy, thresholds)
    if _interferes(cells, Relevant.IMAGE, value, thresholds):
        return Verdict(State.FLAGGED, cause=Cause.TEXT, risk=value)
    if cells[NO_CONTEXT].reproduces and _confident_of_y(cells, thresholds, NEUTRAL_IMAGE, PRIOR):
        return Verdict(State.FLAGGED, cause=Cause.PRIOR, risk=value)
    return Verdict(State.PASS, risk=value)


def _text_decides(score: Score, thresholds: Thresholds, has_context: bool) -> Verdict:
    cells = score.cells
    value = risk_of(cells[NEUTRAL_IMAGE], score.entropy, thresholds)
    if _interferes(cells, Relevant.TEXT, value, thresholds):
        return Verdict(State.FLAGGED, cause=Cause.IMAGE, risk=value)
    neutral = cells[NEUTRAL_IMAGE].reproduces
    if has_context and neutral and _confident_of_y(cells, thresholds, NO_CONTEXT, PRIOR):
        return Verdict(State.FLAGGED, cause=Cause.PRIOR, risk=value)
    return Verdict(State.PASS, risk=value)


def _both_decide(score: Score, thresholds: Thresholds, has_context: bool) -> Verdict:
    cells = score.cells
    if _confident_of_y(cells, thresholds, *(CELLS if has_context else (NEUTRAL_IMAGE,))):
        return Verdict(State.FLAGGED, cause=Cause.PRIOR)
    return Verdict(State.PASS)


def _relevance_unknown(score: Score, thresholds: Thresholds, has_context: bool) -> Verdict:
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
    return answer.casefold().rstrip(".").strip()


def _why_missing(score: Score, needed: tuple[str, ...]) -> str:
    """The first of UNSCORED_REASONS that holds for a missing cell."""
    reasons = {score.missing.get(name, "incomplete") for name in needed if name not in score.cells}
    return next(reason for reason in UNSCORED_REASONS if reason in reasons)
