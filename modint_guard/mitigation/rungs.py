"""The rungs: what each of them does to get another answer in place of a flagged one.

neutralise  serves the answer of the relevant modality alone, if that view is confident of it. The answer is
            known from the cells if it is short, and is generated otherwise. Of a longer answer with flagged
            claims or JSON values among others, only these are generated again (`parts`)
escalate    sends the request once more, to the robust adapter, with its own probes; serves that answer if it
            passes
debias      options only: argmax over k of log p(k | v, c, q) - lambda log p(k | irrelevant alone, q), from
            replies that are already there (compare arXiv 2311.16922, and 2504.10020 on its controls)
rerank      free text only: of at most four candidates the one with the largest mean over its tokens of
            log p(y_t | v, c, q) - lambda log p(y_t | irrelevant alone, q), each scored by teacher forcing
abstain     gives no answer, and says what either modality alone would have answered

v is the image, c the context, q the question. Neutralise, debias and rerank need to know which modality is
irrelevant.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from modint_guard.chat.reply import answer_positions, replies_of, reply_of, token_text
from modint_guard.errors import EndpointError, EndpointTimeout
from modint_guard.judging.divergence import Distribution, option_distribution
from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.judging.text_match import is_short, same_answer
from modint_guard.mitigation import parts
from modint_guard.mitigation.policy import Form, Policy, abstention
from modint_guard.probing import probe
from modint_guard.probing.teacher_forcing import answer_text, forced_body, forced_reply
from modint_guard.probing.views import full_body, short_body
from modint_guard.report import Report
from modint_guard.types import (
    ABSTAIN,
    DEBIAS,
    ESCALATE,
    FIRST_TOKEN,
    JSON,
    NEUTRAL_IMAGE,
    NEUTRALISE,
    NO_CONTEXT,
    RERANK,
    SELF_ASKED,
    TEACHER_FORCED,
    Chat,
    Complete,
    Plan,
    Position,
    Relevant,
    Replies,
    Reply,
    RungOutcome,
    State,
    View,
)

# The cell in which only the irrelevant modality is left.
IRRELEVANT_ALONE = {Relevant.IMAGE: NEUTRAL_IMAGE, Relevant.TEXT: NO_CONTEXT}
MISSING_MODEL = 404
T = TypeVar("T")
_WITH_LOGPROBS = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}


@dataclass(frozen=True, slots=True)
class FlaggedAnswer:
    """A flagged answer and all that is known about it.

    replies: those of the views, comparable with the answer. min_option_mass: the least probability that the
    options must hold together to be compared alone, in [0, 1].
    """

    plan: Plan
    answer: Reply
    replies: Replies
    report: Report
    min_option_mass: float

    @property
    def chat(self) -> Chat:
        """The request, split into images, context and question."""
        return self.plan.chat

    @property
    def form(self) -> Form:
        """The form of the flagged answer, as `form_of` gives it."""
        return form_of(self.answer, self.chat)

    def is_same_answer(self, text: str) -> bool:
        """Whether a text gives the same answer as the flagged one."""
        return same_answer(self.answer.text, text, [option.label for option in self.chat.options])


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one rung came to, with its answer if it has one."""

    outcome: RungOutcome
    text: str | None = None
    finish_reason: str | None = "stop"

    @property
    def settles(self) -> bool:
        """Whether no further rung is needed."""
        return self.outcome in (RungOutcome.MENDED, RungOutcome.CONFIRMED, RungOutcome.ABSTAINED)


Examine = Callable[[Plan, Complete], Awaitable[tuple[Reply, Report]]]  # a request asked and judged
Rung = Callable[[FlaggedAnswer, Policy, Complete, Examine], Awaitable[Attempt]]
UNFIT = Attempt(RungOutcome.UNFIT)


async def neutralise(flagged: FlaggedAnswer, policy: Policy, complete: Complete, examine: Examine) -> Attempt:
    """The answer of the relevant modality alone. Raises EndpointError if it cannot be generated."""
    name = WITHOUT_IRRELEVANT.get(flagged.report.relevant)
    reply = flagged.replies.get(name) if name else None
    if name is None or not isinstance(reply, Reply) or reply.skip:
        return UNFIT
    if not _is_known(reply):
        view = next(view for view in flagged.plan.views if view.name == name)
        if (by_parts := await _by_parts(flagged, policy, view, complete)) is not None:
            return by_parts
        body = {**full_body(flagged.plan.body), "messages": view.body["messages"]}
        if flagged.plan.schedule.top_logprobs:
            body |= _WITH_LOGPROBS
        reply = reply_of(await complete(body))
        if reply.skip:
            return UNFIT
    is_confident = confidence(reply) >= policy.accept_at
    return _attempt(flagged, reply.text.strip(), reply.finish_reason, accepted=is_confident)


async def _by_parts(flagged: FlaggedAnswer, policy: Policy, view: View, complete: Complete) -> Attempt | None:
    """The answer with its flagged parts generated again under the view; None if that is not possible."""
    if not (found := parts.flagged_parts(flagged.report)):
        return None
    try:
        new = await parts.rewritten(flagged.answer, found, flagged.plan.body, view.body, complete)
    except EndpointTimeout:
        raise
    except EndpointError:  # it does not go on behind a given beginning
        return None
    if new is None:
        return None
    sure = math.exp(math.fsum(new.logprobs) / len(new.logprobs)) if new.logprobs else 0.0
    accepted = min(1.0, sure) >= policy.accept_at
    return _attempt(flagged, new.text.strip(), flagged.answer.finish_reason, accepted=accepted)


async def escalate(flagged: FlaggedAnswer, policy: Policy, complete: Complete, examine: Examine) -> Attempt:
    """The robust adapter's answer to the same request, examined in turn. Raises EndpointError."""
    if flagged.plan.body.get("model") == policy.robust:
        return UNFIT
    if not policy.robust:
        return Attempt(RungOutcome.MISSING)
    try:
        answer, report = await examine(for_model(flagged, policy.robust), complete)
    except EndpointError as exc:
        if exc.status != MISSING_MODEL:
            raise
        return Attempt(RungOutcome.MISSING)
    text = answer.text.strip()
    if answer.skip or report.verdict.state is State.SKIPPED:
        return UNFIT
    if report.verdict.state is State.FLAGGED:
        return Attempt(RungOutcome.FLAGGED, text)
    return _attempt(flagged, text, answer.finish_reason, accepted=report.verdict.state is State.PASS)


async def debias(flagged: FlaggedAnswer, policy: Policy, complete: Complete, examine: Examine) -> Attempt:
    """The option that the contrast prefers. Costs nothing."""
    alone = flagged.replies.get(IRRELEVANT_ALONE.get(flagged.report.relevant, ""))
    label = label_of(flagged.answer, flagged.chat)
    if label is None or not isinstance(alone, Reply):
        return UNFIT
    labels = [option.label for option in flagged.chat.options]
    full = option_distribution(flagged.answer.top or {}, labels, flagged.min_option_mass)
    irrelevant = option_distribution(alone.top or {}, labels, flagged.min_option_mass)
    if full is None or irrelevant is None:
        return UNFIT
    best = debiased(full, irrelevant, policy.debias_lambda)
    return Attempt(RungOutcome.UNCHANGED if best == label else RungOutcome.MENDED, best)


async def rerank(flagged: FlaggedAnswer, policy: Policy, complete: Complete, examine: Examine) -> Attempt:
    """The candidate that the contrast prefers: the flagged answer, the relevant modality's own, or a sample.

    Only for a flagged answer that was scored as a whole. Raises EndpointError if no candidate can be
    generated.
    """
    was_scored = flagged.report.method == TEACHER_FORCED
    if flagged.report.relevant not in IRRELEVANT_ALONE or flagged.form != "free" or not was_scored:
        return UNFIT
    candidates = await _candidates(flagged, policy, complete)
    contrasts = await _together(_contrast(reply, flagged, policy, complete) for reply in candidates)
    scored = [(value, reply) for value, reply in zip(contrasts, candidates, strict=True) if value is not None]
    if not scored or scored[0][1] is not flagged.answer:
        return Attempt(RungOutcome.FAILED)  # the flagged answer has no score to compare with
    _, best = max(scored, key=lambda pair: pair[0])
    is_same = best is flagged.answer or flagged.is_same_answer(best.text)
    outcome = RungOutcome.UNCHANGED if is_same else RungOutcome.MENDED
    return Attempt(outcome, best.text.strip(), best.finish_reason)


async def abstain(flagged: FlaggedAnswer, policy: Policy, complete: Complete, examine: Examine) -> Attempt:
    """No answer, but a sentence that says so; or, if the policy says so and it has others, the answer without
    its flagged parts. Costs nothing.
    """
    if policy.parts == "leave_out" and (found := parts.flagged_parts(flagged.report)):
        text = parts.left_out(flagged.answer, found)
        return Attempt(RungOutcome.ABSTAINED, text, flagged.answer.finish_reason)
    return Attempt(RungOutcome.ABSTAINED, abstention(flagged.report), "content_filter")


BY_NAME: Mapping[str, Rung] = {
    NEUTRALISE: neutralise,
    ESCALATE: escalate,
    DEBIAS: debias,
    RERANK: rerank,
    ABSTAIN: abstain,
}


def tokens_of(rung: str, flagged: FlaggedAnswer, policy: Policy) -> int:
    """An upper estimate of a rung's cost in tokens: its number of calls, each as long as the longest so far.

    If a stream did not report its usage, the tokens of its answer are counted instead.
    """
    replies = [flagged.answer, *(reply for reply in flagged.replies.values() if isinstance(reply, Reply))]
    prompt = max(reply.prompt_tokens for reply in replies)
    answer = max(flagged.answer.completion_tokens, len(flagged.answer.positions))
    return _calls(rung, flagged, policy) * (prompt + answer)


def label_of(answer: Reply, chat: Chat) -> str | None:
    """The label of the option that the answer is, ignoring a final full stop; None for any other answer."""
    label = token_text(answer.text).removesuffix(".")
    return next((option.label for option in chat.options if option.label == label), None)


def form_of(answer: Reply, chat: Chat) -> Form:
    """Whether the answer is an option's label ("options"), a few words ("word") or longer ("free")."""
    if label_of(answer, chat) is not None:
        return "options"
    return "word" if is_short(answer) else "free"


def has_ended(view: Reply) -> bool:
    """Whether a view, which is asked for a token or two only, ended its answer by itself."""
    return view.finish_reason == "stop" and bool(view.text.strip())


def confidence(reply: Reply) -> float:
    """How probable a reply's text is: the geometric mean of its tokens' probabilities, in [0, 1]. 0 if they
    are not known.
    """
    positions = answer_positions(reply)
    return min(1.0, math.exp(_mean(positions))) if positions else 0.0


def debiased(full: Distribution, irrelevant: Distribution, debias_lambda: float) -> str:
    """argmax over k of log p(k) - lambda log p(k | irrelevant alone), the first of equal ones.

    full, irrelevant: probabilities by option label, every one above 0.
    """
    return max(full, key=lambda k: math.log(full[k]) - debias_lambda * math.log(irrelevant[k]))


def for_model(flagged: FlaggedAnswer, model: str) -> Plan:
    """The same request and views for another model, with the relevance that was decided for the first one.

    Longer answers are not scored as a whole: asking an adapter for prompt log-probabilities can crash vLLM's
    CPU engine.
    """
    plan, report = flagged.plan, flagged.report
    schedule = plan.schedule
    views = tuple(
        View(view.name, {**view.body, "model": model}) for view in schedule.views if view.name != SELF_ASKED
    )
    method = FIRST_TOKEN if schedule.method == TEACHER_FORCED else schedule.method
    return replace(
        plan,
        body={**full_body(plan.body), "model": model},
        relevant=report.relevant,
        relevant_source=report.relevant_source,
        relevant_probability=report.relevant_probability,
        schedule=replace(schedule, views=views, method=method),
        notes=(),
        choices=1,
    )


def _attempt(flagged: FlaggedAnswer, text: str, finish_reason: str | None, *, accepted: bool) -> Attempt:
    if not accepted:
        return Attempt(RungOutcome.UNSURE, text)
    outcome = RungOutcome.CONFIRMED if flagged.is_same_answer(text) else RungOutcome.MENDED
    return Attempt(outcome, text, finish_reason or "stop")


def _is_known(view: Reply) -> bool:
    """Whether a view's own answer and its confidence are known. If the answer was generated as a whole
    (`regenerate`), only its first word's probabilities are known, and it is asked for again.
    """
    return has_ended(view) and not view.whole


def _calls(rung: str, flagged: FlaggedAnswer, policy: Policy) -> int:
    """The largest number of calls that a rung makes to the engine."""
    if rung == NEUTRALISE:
        reply = flagged.replies.get(WITHOUT_IRRELEVANT.get(flagged.report.relevant, ""))
        by_parts = len(parts.flagged_parts(flagged.report))  # and the whole, if they cannot be rewritten
        return (1 + by_parts) * int(isinstance(reply, Reply) and not _is_known(reply))
    if rung == ESCALATE:
        return 1 + len(flagged.plan.views)
    return 3 * policy.candidates if rung == RERANK else 0


async def _candidates(flagged: FlaggedAnswer, policy: Policy, complete: Complete) -> list[Reply]:
    """The flagged answer first, then others, each text once; all with their tokens' log-probabilities."""
    body = full_body(flagged.plan.body)
    name = WITHOUT_IRRELEVANT[flagged.report.relevant]
    view = next((view for view in flagged.plan.views if view.name == name), None)
    bodies = [{**body, **_WITH_LOGPROBS, "temperature": 1.0, "n": policy.candidates - 2 or 1}]
    if view is not None:
        bodies.insert(0, {**body, **_WITH_LOGPROBS, "messages": view.body["messages"]})
    completions = await _together(complete(body) for body in bodies)
    replies = [flagged.answer, *(reply for completion in completions for reply in replies_of(completion))]
    distinct: dict[str, Reply] = {}
    for reply in replies:
        if not reply.skip:
            distinct.setdefault(reply.text.strip(), reply)
    return list(distinct.values())[: policy.candidates]


async def _contrast(
    candidate: Reply, flagged: FlaggedAnswer, policy: Policy, complete: Complete
) -> float | None:
    """Mean over the candidate's tokens of log p(y_t | all) - lambda log p(y_t | irrelevant alone), in nats;
    None if either side cannot be scored.
    """
    name = IRRELEVANT_ALONE[flagged.report.relevant]
    view = next((view for view in flagged.plan.views if view.name == name), None)
    if view is None:
        return None
    bodies = (short_body(flagged.plan.body, 1, 1), view.body)
    try:
        full, alone = await _together(
            _scored(candidate, body, complete, last_rows=flagged.plan.schedule.last_rows) for body in bodies
        )
    except EndpointError:
        return None
    return _mean(full) - policy.debias_lambda * _mean(alone)


async def _scored(
    candidate: Reply, body: JSON, complete: Complete, *, last_rows: bool
) -> tuple[Position, ...]:
    rows = len(answer_positions(candidate)) if last_rows else None
    completion = await complete(forced_body(body, answer_text(candidate), 1, rows))
    return forced_reply(completion, 0.0, candidate).forced


async def _together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of the calls, made at once. If one fails or is cancelled, the others are cancelled and have
    ended before its error is raised, so that no call outlives its rung.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await probe.cancel_and_wait(tasks)


def _mean(positions: tuple[Position, ...]) -> float:
    return math.fsum(position.logprob for position in positions) / len(positions)
