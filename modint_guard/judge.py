"""From replies to a report: the features of an answer, its verdict, and the report on it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from modint_guard.chat.json_leaves import leaves_in
from modint_guard.config import GuardConfig
from modint_guard.judging import scoring, verdict
from modint_guard.judging.calibration import Calibration, Fitted
from modint_guard.judging.explanation import explained
from modint_guard.judging.null import Null
from modint_guard.judging.risk import Thresholds
from modint_guard.judging.self_ask import by_self_ask
from modint_guard.judging.spans import flagged_words, spans_of, turned_tokens
from modint_guard.judging.statistic import flag_statistic, likeliest_statistic, token_statistics
from modint_guard.judging.text_match import is_short, score_words, turned, words_result
from modint_guard.probing import like_views, regenerate
from modint_guard.report import AnswerSpan, NullSummary, ProbeResult, Report, Verdict
from modint_guard.types import (
    CELLS,
    FIRST_TOKEN,
    NAMED_SOURCES,
    NEUTRAL_IMAGE,
    NO_CONTEXT,
    NOOP,
    REGENERATED,
    SELF_ASKED,
    TEACHER_FORCED,
    Cause,
    Chat,
    Failure,
    Plan,
    Relevant,
    Replies,
    Reply,
    Score,
    State,
    Statistic,
)

NOTE_UNSTABLE = "The answer also changed under a harmless change ({names}): it moves with anything."
NOTE_BY_FIRST = "Settled by the first probe; the other cells were not asked. `modint.probes` asks for them."
NOTE_BY_EACH = "Decided by what each modality alone says; what neither would say was not asked."
NOTE_TOO_LONG = "Without log-probabilities only short answers are compared, by generating them again."
NOTE_UNLISTED = (
    "Neither the model nor a view has the answer's first word among its likely ones: nothing to compare."
)
NOTE_NOT_PREFERRED = (
    "The request itself does not clearly prefer this answer (drawn by chance, or given): no view changed one."
)
NOTE_REASONING = "The model reasoned first: request and views were compared as they answer without reasoning."
NOTE_CONSTRAINED = (
    "The request forces the form of its answer, or offers tools: request and views were compared without "
    "that, and only at what it leaves free."
)
NOTE_FIRST_TOKEN = "Judged at the first word of the answer; what follows it was not compared."


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges answers by a calibration of their model, by its null, or, if it has neither, by a fixed rule.

    calibrations, nulls: by served name. A calibration, which was made with labels, goes before a null.
    """

    config: GuardConfig = field(default_factory=GuardConfig)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    nulls: Mapping[str, Null] = field(default_factory=dict)

    def report(self, plan: Plan, answer: Reply, replies: Replies) -> Report:
        """Compare the replies of the views with the answer, and decide."""
        return replace(self._judged(plan, answer, replies), reasoning=answer.reasoning)

    def _judged(self, plan: Plan, answer: Reply, replies: Replies) -> Report:
        if reason := plan.skip or answer.skip or ("empty_answer" if leaves_in(answer.text) == () else None):
            return unjudged(plan, Verdict(State.SKIPPED, reason=reason), replies)
        if plan.schedule.method == REGENERATED and plan.views:
            if answer.reasoning:
                return unjudged(plan, Verdict(State.SKIPPED, reason="reasoning"), replies)
            return self._by_words(plan, answer, replies)
        if not plan.schedule.top_logprobs:
            return unscored(plan, "no_logprobs", replies=None)
        plan = self.informed(plan, replies)
        if like_views.is_needed(plan, answer):
            return self._like_views(plan, answer, replies)
        if regenerate.whole_replies(replies) and (report := self._by_whole_views(plan, answer, replies)):
            return report
        return self._scored(plan, answer, replies)

    def _scored(self, plan: Plan, answer: Reply, replies: Replies) -> Report:
        """Judge by probabilities."""
        score = self.score(plan, answer, replies)
        assert score is not None
        null, fitted = self._null(plan), self._fitted(plan, score)
        thresholds = self._thresholds(null)
        statistic = self.statistic(plan, score)
        by_null = verdict.by_null(statistic, null, thresholds, self.config.alpha) if null else None
        by_calibration = verdict.by_calibration(score, plan.judged_as, fitted) if fitted else None
        weighed = by_calibration or by_null or verdict.by_rule(statistic, thresholds)
        is_named = plan.relevant_source in NAMED_SOURCES
        decided = _decided(plan, score, weighed, thresholds, is_named=is_named)
        if by_null and not by_calibration and null and statistic:
            summary = NullSummary(null.source, int(null.near(statistic.length)), null.power)
            decided = replace(decided, null=summary)
        # What was measured holds for answers of one token, and for answers scored as a whole, that are the
        # most probable ones.
        covered = not score.partial and not _is_not_preferred(score)
        calibrated = covered and decided.risk is not None

        def flags(found: Statistic) -> bool:
            by_null = verdict.by_null(found, null, thresholds, self.config.alpha) if null else None
            return (by_null or verdict.by_rule(found, thresholds)).flags

        spans = _spans(plan, answer, score, decided.cause, flags)
        return self._report(plan, answer, replies, score, replace(decided, calibrated=calibrated), spans)

    def report_on_given(self, plan: Plan, given: Reply, reply: Reply, replies: Replies) -> Report:
        """Judge an answer that was given elsewhere by its first word.

        given: the answer; y is its first word. reply: the model's own reply to the unchanged request, asked
        for a word like a view, which gives the distribution of the request. The report is unscored if neither
        this reply nor a view lists that word.
        """
        if given.skip:
            return unjudged(plan, Verdict(State.SKIPPED, reason=given.skip), replies)
        word = scoring.first_word(given.text, [option.label for option in plan.chat.options])
        skip = None if reply.skip == "empty_answer" else reply.skip
        report = self.report(plan, replace(reply, text=given.text, token=word, skip=skip), replies)
        if skip or plan.skip or not reply.top or scoring.is_listed(word, (reply, *replies.values())):
            return report
        reason = report.verdict.reason if report.verdict.state is State.UNSCORED else "incomplete"
        unlisted = unscored(plan, reason or "incomplete", replies)
        return replace(unlisted, notes=(*unlisted.notes, NOTE_UNLISTED))

    def score(self, plan: Plan, answer: Reply, replies: Replies) -> Score | None:
        """All features of the answer; None if nothing was probed."""
        if plan.skip or not plan.schedule.top_logprobs:
            return None
        thresholds = scoring.with_noise_floor(self.config.thresholds, plan.noise)
        return scoring.score(answer, replies, plan.chat, thresholds)

    def statistic(self, plan: Plan, score: Score) -> Statistic | None:
        """The number that a flag of this answer rests on; None if it cannot be taken (`flag_statistic`)."""
        return flag_statistic(score.cells, plan.judged_as, has_context=_has_context(plan.chat))

    def _shown_statistic(self, plan: Plan, score: Score) -> Statistic | None:
        """The number by which answers can be ordered; of known relevance, the one that a flag rests on."""
        if plan.relevant is not Relevant.UNKNOWN:
            return self.statistic(plan, score)
        return likeliest_statistic(score.cells, plan.likely, has_context=_has_context(plan.chat))

    def settles(self, plan: Plan, answer: Reply, replies: Replies) -> bool:
        """Whether the views asked so far suffice for a verdict and, if a policy corrects, for that too."""
        corrects = plan.schedule.corrects
        if (
            answer.reasoning
        ):  # these views reasoned too: others are asked in their place (`probing.like_views`)
            return True
        plan = self.informed(plan, replies)
        score = None if answer.skip else self.score(plan, answer, replies)
        if score is None:
            return False
        thresholds, fitted = self._thresholds(self._null(plan)), self._fitted(plan, score)
        if not verdict.settles(score, plan.judged_as, thresholds, fitted, corrects=corrects):
            return False
        # What is corrected part by part (`mitigation.parts`) needs the spans, and these need every
        # cell. Where something is corrected, one view settles only what passes.
        passes = not corrects or len(score.cells) == 1
        return passes or score.method != TEACHER_FORCED or all(name in score.cells for name in CELLS)

    def informed(self, plan: Plan, replies: Replies) -> Plan:
        """The plan with the relevance that the model itself named, if it was asked and is confident."""
        reply = replies.get(SELF_ASKED)
        if not isinstance(reply, Reply):
            return plan
        relevant = by_self_ask(reply, self.config.self_ask_confident)
        if relevant is Relevant.UNKNOWN:
            return plan
        return replace(plan, relevant=relevant, relevant_source="self_ask", relevant_probability=None)

    def _fitted(self, plan: Plan, score: Score) -> Fitted | None:
        """The calibration of this request's model, for what ought to decide and the way of comparing."""
        calibration = self.calibrations.get(str(plan.body.get("model")))
        if calibration is None or calibration.method != score.method:
            return None
        return calibration.fitted_for(plan.judged_as)

    def _null(self, plan: Plan) -> Null | None:
        return self.nulls.get(str(plan.body.get("model")))

    def _thresholds(self, null: Null | None) -> Thresholds:
        """The constants, with `sure` as it was measured on the model."""
        if null is None or null.sure is None:
            return self.config.thresholds
        return replace(self.config.thresholds, sure=null.sure)

    def _like_views(self, plan: Plan, answer: Reply, replies: Replies) -> Report:
        """Judge what follows reasoning, or has a forced form, by a request that was asked like its views."""
        request = replies.get(like_views.name_of(answer))
        if request is None:
            of_form = "tool_calls" if plan.body.get("tools") else "structured_output"
            reason = "reasoning" if answer.reasoning else of_form
            return unjudged(plan, Verdict(State.SKIPPED, reason=reason), replies)
        if isinstance(request, Failure):
            return unscored(plan, request.reason, replies)
        if request.skip == "tool_calls":  # they were not found in its prompt
            return unjudged(plan, Verdict(State.SKIPPED, reason="tool_calls"), replies)
        if not request.forced and (not request.top or answer.token is None):
            return unscored(plan, "no_logprobs", replies)
        return self._scored(plan, like_views.as_asked(answer, request), replies)

    def _by_words(self, plan: Plan, answer: Reply, replies: Replies) -> Report:
        """Judge by the texts of answers that were generated again; the verdict has no risk."""
        if not is_short(answer):
            report = unscored(plan, "no_logprobs", replies)
            return replace(report, method=REGENERATED, notes=(*plan.notes, NOTE_TOO_LONG))
        compared = replies if plan.schedule.method == REGENERATED else regenerate.whole_replies(replies)
        score = score_words(answer, compared, plan.chat)
        decided = _decided(plan, score, verdict.Weighed(turned(score.cells, plan.judged_as)))
        if decided.state is State.FLAGGED and NOOP in score.missing:
            decided = Verdict(State.UNSCORED, reason=score.missing[NOOP])
        return self._report(plan, answer, replies, score, replace(decided, risk=None))

    def _by_whole_views(self, plan: Plan, answer: Reply, replies: Replies) -> Report | None:
        """Judge a short answer by the views that were generated as a whole; None if there are too few."""
        if regenerate.is_complete(plan, replies):
            return self._by_words(plan, answer, replies)
        if not regenerate.says_the_same(plan, answer, replies):
            return None
        score = score_words(answer, regenerate.whole_replies(replies), plan.chat)
        return self._report(plan, answer, replies, score, Verdict(State.PASS))

    def _report(
        self,
        plan: Plan,
        answer: Reply,
        replies: Replies,
        score: Score,
        decided: Verdict,
        spans: tuple[AnswerSpan, ...] = (),
    ) -> Report:
        noise = max(plan.noise, score.noise or 0.0)
        thresholds = scoring.with_noise_floor(self.config.thresholds, noise)
        replies = scoring.comparable(answer, replies)
        longer = score.method == FIRST_TOKEN and len(answer.text.split()) > 1
        return Report(
            verdict=decided,
            explanation=explained(decided, plan.judged_as, plan.relevant_source, score, flagged_words(spans)),
            relevant=plan.relevant,
            relevant_source=plan.relevant_source,
            relevant_probability=plan.relevant_probability,
            examined=_examined(score),
            statistic=self._shown_statistic(plan, score),
            influence_text=score.influence_text,
            influence_image=score.influence_image,
            synergy=score.synergy,
            spans=spans,
            influence_images=score.influence_images,
            relative_entropy=score.relative_entropy,
            noise=score.noise,
            image_only=score.image_only,
            text_only=score.text_only,
            probes=tuple(_row(name, answer, reply, plan, thresholds) for name, reply in replies.items()),
            method=score.method,
            notes=(
                *plan.notes,
                *((NOTE_FIRST_TOKEN,) if longer else ()),
                *((NOTE_REASONING,) if answer.reasoning else ()),
                *((NOTE_CONSTRAINED,) if plan.schedule.constrained else ()),
                *((NOTE_NOT_PREFERRED,) if _is_not_preferred(score) else ()),
                *_saved(plan, replies),
                *((NOTE_UNSTABLE.format(names=", ".join(score.unstable)),) if score.unstable else ()),
            ),
        )


def _decided(
    plan: Plan,
    score: Score,
    weighed: verdict.Weighed,
    thresholds: Thresholds | None = None,
    *,
    is_named: bool = False,
) -> Verdict:
    """The verdict by what is judged as relevant. If that is only supposed, and nothing is flagged by it,
    picture and text may still be in conflict.
    """
    decide = partial(
        verdict.decide,
        score,
        thresholds=thresholds,
        weighed=weighed,
        has_context=_has_context(plan.chat),
        is_named=is_named,
    )
    decided = decide(plan.judged_as)
    if plan.relevant is not Relevant.UNKNOWN or decided.state is not State.PASS:
        return decided
    undecided = decide(Relevant.UNKNOWN)
    return undecided if undecided.state is State.FLAGGED else decided


def _spans(
    plan: Plan, answer: Reply, score: Score, cause: Cause | None, flags: Callable[[Statistic], bool]
) -> tuple[AnswerSpan, ...]:
    """The parts of an answer. flags: whether an answer with this statistic is flagged."""
    turned: tuple[int, ...] = ()
    if cause in (Cause.TEXT, Cause.IMAGE):
        by_token = token_statistics(score.cells, plan.judged_as, has_context=_has_context(plan.chat))
        turned = turned_tokens(answer, by_token, flags)
    return spans_of(answer, score, turned, cause)


def skipped(plan: Plan) -> Report:
    """The report on a request that is not probed; the plan holds the reason."""
    return unjudged(plan, Verdict(State.SKIPPED, reason=plan.skip))


def skipped_unread(reason: str) -> Report:
    """The report on a request that is passed through without being read: by its route, or by its wish.

    reason: one of SKIPPED_REASONS.
    """
    decided = Verdict(State.SKIPPED, reason=reason)
    said = explained(decided, Relevant.UNKNOWN, "none", None)
    return Report(verdict=decided, explanation=said, relevant=Relevant.UNKNOWN, relevant_source="none")


def unscored(plan: Plan, reason: str, replies: Replies | None = None) -> Report:
    """The report on an answer that should have been compared and could not be.

    reason: one of UNSCORED_REASONS.
    """
    return unjudged(plan, Verdict(State.UNSCORED, reason=reason), replies)


def unjudged(plan: Plan, decided: Verdict, replies: Replies | None = None) -> Report:
    """The report on an answer that was not compared; it lists the probes that ran with their cost."""
    return Report(
        verdict=decided,
        explanation=explained(decided, plan.relevant, plan.relevant_source, None),
        relevant=plan.relevant,
        relevant_source=plan.relevant_source,
        relevant_probability=plan.relevant_probability,
        probes=tuple(scoring.unjudged_result(name, reply) for name, reply in (replies or {}).items()),
        notes=plan.notes,
    )


def _row(name: str, answer: Reply, reply: Reply | Failure, plan: Plan, thresholds: Thresholds) -> ProbeResult:
    """The report's row of one view."""
    by_words = plan.schedule.method == REGENERATED or (isinstance(reply, Reply) and reply.whole)
    if by_words:
        return words_result(name, answer, reply, plan.chat)
    return scoring.probe_result(name, answer, reply, plan.chat, thresholds)


def _has_context(chat: Chat) -> bool:
    return chat.context is not None


def _is_not_preferred(score: Score) -> bool:
    """Whether no view that was compared found the answer to be the one that the request prefers."""
    return bool(score.cells) and not any(cell.preferred for cell in score.cells.values())


def _saved(plan: Plan, replies: Replies) -> tuple[str, ...]:
    """A note on what an early stop left out, if it left out anything."""
    if not plan.schedule.may_be_saved - set(replies):
        return ()
    return (NOTE_BY_FIRST,) if len(set(CELLS) & set(replies)) == 1 else (NOTE_BY_EACH,)


def _examined(score: Score) -> tuple[str, ...]:
    """The modalities that a view left out and that were compared."""
    by_cell = {NO_CONTEXT: "text", NEUTRAL_IMAGE: "image"}
    return tuple(modality for cell, modality in by_cell.items() if cell in score.cells)
