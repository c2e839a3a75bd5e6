"""What each rung does about a flagged answer: the ways to another answer, each judged by its own rule.

neutralise  the answer of the relevant modality alone. It is known from the cells where it is short, else it
            is generated. Served where that view is sure of it; never where nobody said what is relevant
escalate    the request once more to the robust adapter, with its own cells. Served where that answer passes
debias      options: argmax over k of log p(k | v, c, q) - lambda log p(k | irrelevant alone, q), from the
            replies that are there already (compare arXiv 2311.16922, and 2504.10020 on its controls)
rerank      free text: of at most four candidates the one with the largest mean over its tokens of
            log p(y_t | v, c, q) - lambda log p(y_t | irrelevant alone, q), each scored by teacher forcing
abstain     no answer, but what either modality alone would have said
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from modint_guard.chat.reply import answer_positions, plain, reply_of
from modint_guard.errors import EndpointError
from modint_guard.judging.divergence import Distribution, option_distribution
from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.judging.text_match import is_short, same_answer
from modint_guard.mitigation.policy import Form, Policy, abstention
from modint_guard.probing import probe
from modint_guard.probing.teacher_forcing import answer_text, forced_body, forced_reply
from modint_guard.probing.views import asked_briefly, asked_whole
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
    Report,
    RungOutcome,
    State,
    View,
)

# The cell in which the irrelevant modality speaks alone.
IRRELEVANT_ALONE = {Relevant.IMAGE: NEUTRAL_IMAGE, Relevant.TEXT: NO_CONTEXT}
MISSING_MODEL = 404
T = TypeVar("T")
_LISTED = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}


@dataclass(frozen=True, slots=True)
class Case:
    """A flagged answer and all that is known of it."""

    plan: Plan
    answer: Reply
    replies: Replies
    report: Report
    min_option_mass: float

    @property
    def chat(self) -> Chat:
        """The request, split."""
        return self.plan.chat

    @property
    def form(self) -> Form:
        """As `form_of`."""
        return form_of(self.answer, self.chat)

    def same(self, text: str) -> bool:
        """Whether a text says what the flagged answer says."""
        return same_answer(self.answer.text, text, [option.label for option in self.chat.options])


@dataclass(frozen=True, slots=True)
class Found:
    """What a rung came to: its answer if it has one."""

    outcome: RungOutcome
    text: str | None = None
    finish_reason: str | None = "stop"

    @property
    def settles(self) -> bool:
        """Whether the ladder ends here."""
        return self.outcome in (RungOutcome.MENDED, RungOutcome.CONFIRMED, RungOutcome.ABSTAINED)


Examine = Callable[[Plan, Complete], Awaitable[tuple[Reply, Report]]]  # a request asked and judged
Rung = Callable[[Case, Policy, Complete, Examine], Awaitable[Found]]
UNFIT = Found(RungOutcome.UNFIT)


async def neutralise(case: Case, policy: Policy, complete: Complete, examine: Examine) -> Found:
    """The relevant modality's own answer. Raises EndpointError."""
    name = WITHOUT_IRRELEVANT.get(case.report.relevant)
    reply = case.replies.get(name) if name else None
    if name is None or not isinstance(reply, Reply) or reply.skip:
        return UNFIT
    if not _is_known(reply):
        view = next(view for view in case.plan.views if view.name == name)
        body = {**asked_whole(case.plan.body), "messages": view.body["messages"]}
        reply = reply_of(await complete({**body, **_LISTED} if case.plan.schedule.top_logprobs else body))
        if reply.skip:
            return UNFIT
    sure = sureness(reply) >= policy.accept_at
    return _settled(case, reply.text.strip(), reply.finish_reason, sure=sure)


async def escalate(case: Case, policy: Policy, complete: Complete, examine: Examine) -> Found:
    """The robust adapter's answer to the request as it is, probed once more. Raises EndpointError."""
    if case.plan.body.get("model") == policy.robust:
        return UNFIT
    if not policy.robust:
        return Found(RungOutcome.MISSING)
    try:
        answer, report = await examine(for_model(case, policy.robust), complete)
    except EndpointError as exc:
        if exc.status != MISSING_MODEL:
            raise
        return Found(RungOutcome.MISSING)
    text = answer.text.strip()
    if answer.skip or report.verdict.state is State.SKIPPED:
        return UNFIT
    if report.verdict.state is State.FLAGGED:
        return Found(RungOutcome.FLAGGED, text)
    return _settled(case, text, answer.finish_reason, sure=report.verdict.state is State.PASS)


async def debias(case: Case, policy: Policy, complete: Complete, examine: Examine) -> Found:
    """The option that the contrast prefers; costs nothing."""
    alone = case.replies.get(IRRELEVANT_ALONE.get(case.report.relevant, ""))
    said = label_of(case.answer, case.chat)
    if said is None or not isinstance(alone, Reply):
        return UNFIT
    labels = [option.label for option in case.chat.options]
    full = option_distribution(case.answer.top or {}, labels, case.min_option_mass)
    irrelevant = option_distribution(alone.top or {}, labels, case.min_option_mass)
    if full is None or irrelevant is None:
        return UNFIT
    best = debiased(full, irrelevant, policy.debias_lambda)
    return Found(RungOutcome.UNCHANGED if best == said else RungOutcome.MENDED, best)


async def rerank(case: Case, policy: Policy, complete: Complete, examine: Examine) -> Found:
    """The candidate that the contrast prefers: the flagged answer, the relevant modality's own, and samples.
    Needs a flagged answer that could be scored as a whole. Raises EndpointError.
    """
    scored = case.report.method == TEACHER_FORCED
    if case.report.relevant not in IRRELEVANT_ALONE or case.form != "free" or not scored:
        return UNFIT
    candidates = await _candidates(case, policy, complete)
    contrasts = await _together(_contrast(each, case, policy, complete) for each in candidates)
    valued = [(value, each) for value, each in zip(contrasts, candidates, strict=True) if value is not None]
    if not valued or valued[0][1] is not case.answer:
        return Found(RungOutcome.FAILED)  # nothing to be better than
    _, best = max(valued, key=lambda pair: pair[0])
    same = best is case.answer or case.same(best.text)
    outcome = RungOutcome.UNCHANGED if same else RungOutcome.MENDED
    return Found(outcome, best.text.strip(), best.finish_reason)


async def abstain(case: Case, policy: Policy, complete: Complete, examine: Examine) -> Found:
    """No answer; costs nothing."""
    return Found(RungOutcome.ABSTAINED, abstention(case.report), "content_filter")


BY_NAME: Mapping[str, Rung] = {
    NEUTRALISE: neutralise,
    ESCALATE: escalate,
    DEBIAS: debias,
    RERANK: rerank,
    ABSTAIN: abstain,
}


def tokens_of(rung: str, case: Case, policy: Policy) -> int:
    """What a rung would cost at most, in tokens, were each of its calls as dear as the dearest so far. Where
    a stream was not asked for its usage, the positions of its answer are counted.
    """
    replies = [case.answer, *(reply for reply in case.replies.values() if isinstance(reply, Reply))]
    prompt = max(reply.prompt_tokens for reply in replies)
    answer = max(case.answer.completion_tokens, len(case.answer.positions))
    return _calls(rung, case, policy) * (prompt + answer)


def label_of(answer: Reply, chat: Chat) -> str | None:
    """The option's label that the answer is, a final full stop aside; None where it says anything else."""
    said = plain(answer.text).removesuffix(".")
    return next((option.label for option in chat.options if option.label == said), None)


def form_of(answer: Reply, chat: Chat) -> Form:
    """Whether the answer is one of the options' labels, a few words, or longer."""
    if label_of(answer, chat) is not None:
        return "options"
    return "word" if is_short(answer) else "free"


def said_whole(view: Reply) -> bool:
    """Whether a view, asked for a token or two, has ended its answer by itself."""
    return view.finish_reason == "stop" and bool(view.text.strip())


def sureness(reply: Reply) -> float:
    """The geometric mean of its tokens' probabilities, in [0, 1]; 0 where they are not known."""
    positions = answer_positions(reply)
    return min(1.0, math.exp(_mean(positions))) if positions else 0.0


def debiased(full: Distribution, irrelevant: Distribution, debias_lambda: float) -> str:
    """argmax over k of log p(k) - lambda log p(k | irrelevant alone); of equals the first. Every probability
    must be above 0.
    """
    return max(full, key=lambda k: math.log(full[k]) - debias_lambda * math.log(irrelevant[k]))


def for_model(case: Case, model: str) -> Plan:
    """The same request and views for another model, its relevance as it was found. Longer answers are not
    scored as a whole: an adapter's prompt log-probabilities can end vLLM's CPU engine.
    """
    plan, report = case.plan, case.report
    schedule = plan.schedule
    views = tuple(
        View(view.name, {**view.body, "model": model}) for view in schedule.views if view.name != SELF_ASKED
    )
    method = FIRST_TOKEN if schedule.method == TEACHER_FORCED else schedule.method
    return replace(
        plan,
        body={**asked_whole(plan.body), "model": model},
        relevant=report.relevant,
        relevant_source=report.relevant_source,
        schedule=replace(schedule, views=views, method=method),
        notes=(),
    )


def _settled(case: Case, text: str, finish_reason: str | None, *, sure: bool) -> Found:
    if not sure:
        return Found(RungOutcome.UNSURE, text)
    return Found(
        RungOutcome.CONFIRMED if case.same(text) else RungOutcome.MENDED, text, finish_reason or "stop"
    )


def _is_known(view: Reply) -> bool:
    """Whether a view's own answer is known, and how sure it is of it. Of one that was generated whole besides
    (`doubt`) only the first word's probabilities are: it is asked again.
    """
    return said_whole(view) and not view.whole


def _calls(rung: str, case: Case, policy: Policy) -> int:
    """The most calls of the engine that a rung makes."""
    if rung == NEUTRALISE:
        reply = case.replies.get(WITHOUT_IRRELEVANT.get(case.report.relevant, ""))
        return int(isinstance(reply, Reply) and not _is_known(reply))
    if rung == ESCALATE:
        return 1 + len(case.plan.views)
    return 3 * policy.candidates if rung == RERANK else 0


async def _candidates(case: Case, policy: Policy, complete: Complete) -> list[Reply]:
    """The flagged answer first, then others, no two alike; every one with its tokens' log-probabilities."""
    whole = asked_whole(case.plan.body)
    name = WITHOUT_IRRELEVANT[case.report.relevant]
    view = next((view for view in case.plan.views if view.name == name), None)
    bodies = [{**whole, **_LISTED, "temperature": 1.0, "n": policy.candidates - 2 or 1}]
    if view is not None:
        bodies.insert(0, {**whole, **_LISTED, "messages": view.body["messages"]})
    completions = await _together(complete(body) for body in bodies)
    found = [case.answer, *(reply for each in completions for reply in _choices(each))]
    distinct: dict[str, Reply] = {}
    for each in found:
        if not each.skip:
            distinct.setdefault(each.text.strip(), each)
    return list(distinct.values())[: policy.candidates]


def _choices(completion: JSON) -> list[Reply]:
    return [reply_of({**completion, "choices": [choice]}) for choice in completion.get("choices") or ()]


async def _contrast(candidate: Reply, case: Case, policy: Policy, complete: Complete) -> float | None:
    """Mean over its tokens of log p(y_t | all) - lambda log p(y_t | irrelevant alone), nats; None where a
    view cannot score it.
    """
    name = IRRELEVANT_ALONE[case.report.relevant]
    view = next((view for view in case.plan.views if view.name == name), None)
    if view is None:
        return None
    own = asked_briefly(case.plan.body, 1, 1)
    try:
        full, alone = await _together(_scored(candidate, body, complete) for body in (own, view.body))
    except EndpointError:
        return None
    return _mean(full) - policy.debias_lambda * _mean(alone)


async def _scored(candidate: Reply, body: JSON, complete: Complete) -> tuple[Position, ...]:
    scored = await complete(forced_body(body, answer_text(candidate), 1))
    return forced_reply(scored, 0.0, candidate).forced


async def _together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """What the calls give. Where one fails, or is cancelled, the others have ended when its error is raised:
    no call goes on behind its rung."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await probe.gone(tasks)


def _mean(positions: tuple[Position, ...]) -> float:
    return math.fsum(position.logprob for position in positions) / len(positions)
