"""From a score to one of four verdicts. Pure.

y is the served answer. The views are no_context (the image alone), neutral_image (the text alone) and prior
(neither). What ought to decide is sure that y is wrong if, alone, it prefers another token where the score
was read, with at least `sure` of the probability of the two: as the null measured it on this model, else the
one of `risk.Thresholds`. "Certain" is a probability of at least `certain`: where an answer need not have
changed, a model's confidence is all there is.

relevant  flagged as   if
image     text         the answer's score (`judging.statistic`) is weighed and found unusual
text      image        the same
any but   prior        the client or a route named what ought to decide: every view that lacks it is certain
unknown                of y, alone it gives y too, and it had no influence
unknown   conflict     the image alone and the text alone are certain of different answers
any but   neglect      the client or a route named what ought to decide, no other rule holds, and it had no
unknown                influence

No influence: its Shapley value for the log-odds of y is below `negligible`.

What weighs the score (`Weighed`) is the first of these that there is:

a calibration   made with labels for this model: its risk reaches its threshold, unstable or not, because its
                promise holds for that rule
a null          p <= alpha, and the score reaches the log-odds of `sure`: what ought to decide is sure that y
                is wrong; risk is 1 - p. It must know enough scores of about the answer's length
nothing         the score reaches these log-odds for an answer of its length: of n tokens each must be n times
                as seldom mistaken, for a longer answer has more of them; there is no risk, and the report
                says that nothing was measured (`calibrated` is false)

What ought to decide, alone, must be sure that y is wrong: a model that sees badly and was helped by its
caption was not led astray by it.

A guess of what ought to decide is not enough for prior and neglect: a right answer may need neither picture
nor text ("no", to a question after something that the picture lacks). If a longer answer is judged at its
first word, it is never flagged as prior either, because every view may begin with "The". A flag as text or
image is withdrawn if y also flipped under a control that ran (benign, permuted_options, question_first): such
an answer moves with any change. An answer that the request itself does not prefer, because it was drawn by
chance or comes from elsewhere, is never flagged as text or image.
Any other answer passes; for both and unknown the report then states influences only.

Without a context, only neutral_image is used for relevant=text and both. For relevant=image there is no
irrelevant modality to examine, and the request is skipped as "no_context", unless it is flagged as prior. For
unknown it is skipped likewise.

With an early stop, some of the cells can decide alone (`settles`). One view comes first (`FIRST_VIEW`):
an answer that it leaves as it is cannot be flagged as text or image, and passes. A calibration passes and
flags there, by its risk; a policy that corrects answers needs to know what each modality alone answers, and
asks the others too. If both modalities ought to decide, an answer of which the prior is not sure passes.
Cells that are left out for this reason are not missing.

If no modality is known to be irrelevant (both, unknown, or nothing to leave out) the risk is null, even for a
flagged answer: prior and conflict have rules of their own that do not use it. If a cell that the rule needs
is missing, the verdict is unscored and risk is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from modint_guard.judging.calibration import Fitted
from modint_guard.judging.null import Null
from modint_guard.judging.risk import WITHOUT_IRRELEVANT, Logistic, Thresholds, features_of_score
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
    """Whether the irrelevant modality is to be flagged; the risk, in [0, 1], None if nothing was measured on
    the model; and whether a calibration promised something for just this rule.
    """

    flags: bool
    risk: float | None = None
    is_promised: bool = False


FIRST_VIEW = {**WITHOUT_IRRELEVANT, Relevant.BOTH: PRIOR}  # the view that an early stop asks first
_INTERFERING = {Relevant.IMAGE: Cause.TEXT, Relevant.TEXT: Cause.IMAGE}  # the cause if the other one decided


def decide(
    score: Score,
    relevant: Relevant,
    thresholds: Thresholds | None = None,
    *,
    weighed: Weighed,
    has_context: bool,
    is_named: bool = False,
) -> Verdict:
    """The verdict on one scored answer, by the rules at the top of this file.

    relevant: the modality that ought to decide. weighed: what was found of the irrelevant one, if there is
    one. has_context: whether the request has a context. is_named: whether the client or a route named that
    modality, so that an answer that did without it can be flagged.
    """
    thresholds = thresholds or Thresholds()
    verdict = _decided(score, relevant, thresholds, weighed, has_context=has_context, is_named=is_named)
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


def by_calibration(score: Score, relevant: Relevant, fitted: Fitted) -> Weighed | None:
    """What a calibration says of an answer; None without the view that its risk is computed from."""
    features = features_of_score(score, relevant)
    if features is None:
        return None
    risk = Logistic(fitted.bias, fitted.weights).risk(features)
    preferred = score.cells[WITHOUT_IRRELEVANT[relevant]].preferred
    return Weighed(risk >= fitted.flag_at and preferred, risk, is_promised=True)


def by_null(statistic: Statistic | None, null: Null, thresholds: Thresholds, alpha: float) -> Weighed | None:
    """What a null says of an answer's statistic at the level alpha; None if there is no statistic, or if the
    null knows too few scores of about that length. Nothing is flagged that did not change, or of which what
    ought to decide is not sure, however unusual it is.
    """
    if statistic is None or not null.resolves(alpha, statistic.length):
        return None
    p = null.p_value(statistic.value, statistic.length)
    return Weighed(p <= alpha and _is_flag(statistic, thresholds.least_score()), 1.0 - p)


def by_rule(statistic: Statistic | None, thresholds: Thresholds) -> Weighed:
    """What can be said of a model of which nothing was measured: the answer changed, and what ought to
    decide, alone, is sure that it is wrong, the surer the longer it is.
    """
    return Weighed(statistic is not None and _is_flag(statistic, thresholds.least_score(statistic.length)))


def _is_flag(statistic: Statistic, least: float) -> bool:
    return 0.0 < statistic.value >= least


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
    score: Score,
    relevant: Relevant,
    thresholds: Thresholds,
    weighed: Weighed,
    *,
    has_context: bool,
    is_named: bool,
) -> Verdict:
    """The verdict by the rules for each relevance."""
    verdict = _early(score, relevant, thresholds, weighed) if has_context else None
    if verdict is None:
        needed = cells_needed(relevant, has_context=has_context)
        if any(name not in score.cells for name in needed):
            return Verdict(State.UNSCORED, reason=_why_missing(score, needed))
        verdict = _RULES[relevant](score, thresholds, has_context, weighed)
    if verdict.cause is Cause.PRIOR and (score.partial or not is_named):
        if relevant is Relevant.IMAGE and not has_context:
            return Verdict(State.SKIPPED, reason="no_context")
        return Verdict(State.PASS, risk=verdict.risk)
    if score.unstable and not weighed.is_promised and verdict.cause in (Cause.TEXT, Cause.IMAGE):
        return Verdict(State.PASS, risk=verdict.risk)
    return verdict


def settles(
    score: Score,
    relevant: Relevant,
    thresholds: Thresholds,
    fitted: Fitted | None = None,
    *,
    corrects: bool = False,
) -> bool:
    """Whether the cells asked so far decide the verdict, so that an early stop asks no others.

    fitted: the model's calibration for such requests. corrects: whether a flagged answer will be corrected,
    which needs the others.
    """
    found = by_calibration(score, relevant, fitted) if fitted else None
    early = _early(score, relevant, thresholds, found or Weighed(flags=False))
    if early is None or fitted is None or found is None or found.risk is None:
        return early is not None
    if found.flags:
        return len(score.cells) > 1 or not corrects
    return found.risk < (fitted.flag_at if corrects else fitted.clear_below)


def _early(score: Score, relevant: Relevant, thresholds: Thresholds, weighed: Weighed) -> Verdict | None:
    """The verdict by the first view alone, or by what each modality alone says; None if these decide nothing,
    or if the prior was asked too.
    """
    first, asked = FIRST_VIEW.get(relevant), set(score.cells)
    if first is None or first not in asked or score.missing:
        return None
    if relevant is Relevant.BOTH:
        is_open = asked != {first} or _certain_of_y(score.cells, thresholds, first)
        return None if is_open else Verdict(State.PASS)
    if weighed.is_promised:  # by the first view alone; the other one is for a correction
        is_decided = asked == {first} or (PRIOR not in asked and weighed.flags)
        return _weighed(relevant, weighed) if is_decided else None
    cell = score.cells[first]
    contradicted = any(token.preferred and token.odds < 0.0 for token in cell.tokens)
    is_open = asked != {first} or contradicted or (not cell.tokens and cell.flip is not False)
    return None if is_open else Verdict(State.PASS, risk=weighed.risk)


def cells_needed(relevant: Relevant, *, has_context: bool) -> tuple[str, ...]:
    """The cells that the rule for such a request needs."""
    if has_context:
        return (NO_CONTEXT, NEUTRAL_IMAGE) if relevant is Relevant.UNKNOWN else CELLS
    return () if relevant is Relevant.UNKNOWN else (NEUTRAL_IMAGE,)


def _weighed(relevant: Relevant, found: Weighed) -> Verdict:
    if found.flags:
        return Verdict(State.FLAGGED, cause=_INTERFERING[relevant], risk=found.risk)
    return Verdict(State.PASS, risk=found.risk)


def _image_decides(score: Score, thresholds: Thresholds, has_context: bool, weighed: Weighed) -> Verdict:
    by_prior = _by_prior(score, Relevant.IMAGE, thresholds, has_context=has_context)
    if not has_context:
        return by_prior or Verdict(State.SKIPPED, reason="no_context")
    verdict = _weighed(Relevant.IMAGE, weighed)
    return replace(by_prior, risk=verdict.risk) if by_prior and not weighed.flags else verdict


def _text_decides(score: Score, thresholds: Thresholds, has_context: bool, weighed: Weighed) -> Verdict:
    verdict = _weighed(Relevant.TEXT, weighed)
    by_prior = _by_prior(score, Relevant.TEXT, thresholds, has_context=True) if has_context else None
    return replace(by_prior, risk=verdict.risk) if by_prior and not weighed.flags else verdict


def _both_decide(score: Score, thresholds: Thresholds, has_context: bool, weighed: Weighed) -> Verdict:
    return _by_prior(score, Relevant.BOTH, thresholds, has_context=has_context) or Verdict(State.PASS)


def _relevance_unknown(score: Score, thresholds: Thresholds, has_context: bool, weighed: Weighed) -> Verdict:
    cells = score.cells
    if not has_context:
        return Verdict(State.SKIPPED, reason="no_context")
    image, text = cells[NO_CONTEXT], cells[NEUTRAL_IMAGE]
    disagree = _word(image.answer) != _word(text.answer)
    if min(image.confidence, text.confidence) >= thresholds.certain and disagree:
        return Verdict(State.FLAGGED, cause=Cause.CONFLICT)
    return Verdict(State.PASS)


_RULES = {
    Relevant.IMAGE: _image_decides,
    Relevant.TEXT: _text_decides,
    Relevant.BOTH: _both_decide,
    Relevant.UNKNOWN: _relevance_unknown,
}


def _by_prior(
    score: Score, relevant: Relevant, thresholds: Thresholds, *, has_context: bool
) -> Verdict | None:
    """The flag of an answer that comes without what ought to decide; None if it does not."""
    cells = score.cells
    alone = WITHOUT_IRRELEVANT.get(relevant) if has_context else None
    without = [name for name in (CELLS if has_context else (NEUTRAL_IMAGE,)) if name != alone]
    neglect = neglect_of(score, relevant, has_context=has_context)
    had_none = neglect is not None and neglect > -thresholds.negligible
    stays = alone is None or cells[alone].reproduces
    if had_none and stays and _certain_of_y(cells, thresholds, *without):
        return Verdict(State.FLAGGED, cause=Cause.PRIOR)
    return None


def _certain_of_y(cells: Cells, thresholds: Thresholds, *names: str) -> bool:
    """Whether each view gives all of y, what was drawn by chance included, and is certain of the rest."""
    return all(
        cells[name].reproduces
        and cells[name].p_answer >= thresholds.certain
        and all(token.odds > 0.0 for token in cells[name].tokens)
        for name in names
    )


def _word(answer: str) -> str:
    return answer.casefold().rstrip(".…").strip()


def _why_missing(score: Score, needed: tuple[str, ...]) -> str:
    """The first of UNSCORED_REASONS that holds for a missing cell."""
    reasons = {score.missing.get(name, "incomplete") for name in needed if name not in score.cells}
    return next(reason for reason in UNSCORED_REASONS if reason in reasons)
