"""One request under examination: one object holds its plan, its probes, its answer and its policy.

    async with Examination(plan, complete, judge) as examination:    the first views are sent or wait
        completion = await complete(examination.body)                the request, as it goes to the engine
        report = await examination.report_on(lambda: reply_of(completion))    judged, and corrected

If the request asks for several answers, the views are asked once, and each answer is judged and corrected on
its own (`reports_on`).

Leaving the context cancels whatever is still running. Nothing that goes wrong here costs the client the
answer of the engine: a failing probe or verdict makes the report `unscored`, and a failing correction leaves
the answer as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar

from modint_guard.chat.reply import given_reply, reply_of, strip_added
from modint_guard.chat.tool_calls import as_written
from modint_guard.errors import EndpointError, EndpointTimeout, EndpointUnreachable
from modint_guard.judge import Judge, unscored
from modint_guard.judging import scoring
from modint_guard.mitigation import ladder
from modint_guard.mitigation.policy import Policy
from modint_guard.mitigation.rungs import FlaggedAnswer
from modint_guard.plan import main_body, policy_of, view_body
from modint_guard.probing import like_views, regenerate, schedule
from modint_guard.probing.once import Once
from modint_guard.probing.probe import FutureAnswer, cancel_and_wait
from modint_guard.probing.views import unconstrained
from modint_guard.report import Report
from modint_guard.types import ANNOTATE, JSON, Cause, Complete, Plan, Replies, Reply, Score, State

FREE_S = 1e-6  # to free a token with 20 alternatives
QUICK_TOKENS = 16  # of an answer that is judged in a few milliseconds
NOTE_CALLS = "Tool calls are judged, not corrected."
_NOT_OURS = (401, 408, 429)  # refusals that are not about the body
_BROKEN = (None, 500, 502)  # of an engine that fails at a body, or answers it with what is no JSON
STEPS = ("reading", "probing", "judging", "correcting")  # of an examination; each may fail by itself
logger = logging.getLogger(__name__)
T = TypeVar("T")


class Run(Protocol):
    """Does work that takes long, and returns or raises what it does; in a thread, beside an event loop."""

    async def __call__(self, work: Callable[[], T], /) -> T:
        """The result of the work."""


async def at_once(work: Callable[[], T]) -> T:
    """Does the work here and now."""
    return work()


class Budget(Protocol):
    """How many tokens corrections may cost the client that sent the request."""

    def take(self, wanted: int) -> int:
        """Reserve up to `wanted` tokens, and return how many were reserved."""

    def give_back(self, tokens: int) -> None:
        """Return tokens that were reserved and not spent; a negative number charges for extra ones."""


class Unlimited:
    """A budget without a limit."""

    def take(self, wanted: int) -> int:
        """All that is wanted."""
        return wanted

    def give_back(self, tokens: int) -> None:
        """Nothing to account for."""


class Examination:
    """One request, its views and its answer, as an async context.

    plan: what will be done. body: what goes to the engine. policy: what is done about a flagged answer.
    answer: as `report_on` read it; None before that, and if it could not be read. given: an answer from
    elsewhere that is judged in place of the engine's own; None if there is none.
    """

    def __init__(
        self,
        plan: Plan,
        complete: Complete,
        judge: Judge,
        *,
        policy: Policy | None = None,
        budget: Budget | None = None,
        given: str | JSON | None = None,
        correct: Complete | None = None,
        on_failure: Callable[[str], None] = lambda step: None,
        run: Run = at_once,
    ) -> None:
        """complete: sends the bodies of views to the engine. policy: None for that of the configuration.
        budget: None for one without a limit. given: an answer from elsewhere, its text or the assistant's
        message that it is; `body` then asks for the first words of the model's own answer only, all views are
        sent at once, and nothing is corrected. Raises EndpointError for a message of another shape. correct:
        sends the bodies of rungs; None for `complete`. on_failure: called with the step, one of STEPS, that
        failed. run: reads large answers and judges those of more than QUICK_TOKENS tokens.
        """
        self.plan = plan
        self.policy = policy or policy_of(plan.chat, plan.options, judge.config)
        self.body = (
            main_body(plan)
            if given is None
            else view_body(unconstrained(plan.body), plan.schedule.top_logprobs, judge.config)
        )
        self.answer: Reply | None = None
        self._complete, self._judge = complete, judge
        self._correct = correct or complete
        self._budget = budget or Unlimited()
        self.given = None if given is None else given_reply(given)
        self._on_failure = on_failure
        self._run = run
        self._future_answer: FutureAnswer | None = None
        self._probing: asyncio.Task[Replies] | None = None
        self._once: Once | None = None
        self._others: list[Examination] = []  # of the further answers to the same request
        if plan.choices > 1 and given is None:
            self._complete = self._once = Once(complete)
            alone = replace(plan, choices=1)
            self._others = [
                Examination(
                    alone,
                    self._once,
                    judge,
                    policy=self.policy,
                    budget=budget,
                    correct=self._correct,
                    on_failure=on_failure,
                    run=run,
                )
                for _ in range(1, plan.choices)
            ]

    async def __aenter__(self) -> Self:
        for other in self._others:
            await other.__aenter__()
        if self.plan.views:
            if self.given is None or self.plan.schedule.constrained:
                self._future_answer = asyncio.get_running_loop().create_future()
            replies = probe(
                self.plan, self._judge, self._complete, future_answer=self._future_answer, run=self._run
            )
            self._probing = asyncio.create_task(replies)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        probing = [each._probing for each in (self, *self._others)]
        _free(self._others)
        await cancel_and_wait([task for task in probing if task is not None])
        if self._once is not None:
            await self._once.close()

    def refused_additions(self, error: EndpointError) -> bool:
        """Whether the engine refused `body`, possibly for what the guard added to the client's own."""
        refused = error.status is not None and 400 <= error.status < 500
        return refused and error.status not in _NOT_OURS and self._has_additions

    def failed_on_additions(self, error: EndpointError) -> bool:
        """Whether the engine failed at `body`, possibly for what the guard added: it broke, or wrote no JSON.

        An engine that is late, gone or overloaded would be so without them, too.
        """
        absent = isinstance(error, EndpointTimeout | EndpointUnreachable)
        return error.status in _BROKEN and not absent and self._has_additions

    @property
    def _has_additions(self) -> bool:
        return self.body != self.plan.body

    def strip(self, document: JSON) -> JSON:
        """A completion or chunk without what the client did not ask for; as it is if it cannot be read."""
        try:
            return strip_added(document, self.plan.token_options)
        except Exception:  # noqa: BLE001 - logged and counted by `_failed`
            self._failed("reading", "an answer could not be freed of what the guard had asked for")
            return document

    async def report_on(self, read: Callable[[], Reply], *, is_large: bool = False) -> Report:
        """The report on the engine's answer, which must be complete. Raises nothing but CancelledError.

        read: returns the answer; if it raises, the answer is unscored. is_large: whether it takes long.
        """
        return await self._settled(*await self._verdict_on(read, is_large=is_large))

    async def _verdict_on(self, read: Callable[[], Reply], *, is_large: bool) -> tuple[Report, Replies]:
        """The report on an answer before any correction, and what it rests on."""
        self.answer = await self._read(read, self._run if is_large else at_once)
        if self._future_answer is not None:
            self._future_answer.set_result(self.answer)
        replies = await self._replies()
        return await self._judged(replies, is_large=is_large), replies

    async def _settled(self, report: Report, replies: Replies, shared_by: int = 1) -> Report:
        """The report with what was done about the answer. shared_by: how many answers to the request are to
        be corrected, and share what that may cost.
        """
        if self.given is not None:
            return report
        original = self.answer.text if self.answer else ""
        corrected = await self._corrected(report, replies, self.policy.max_tokens // shared_by)
        return ladder.fail_closed(corrected, self.policy, original)

    async def reports_on(
        self, read: Callable[[], Sequence[Reply]], *, is_large: bool = False
    ) -> list[Report]:
        """The report on each of the engine's answers, one for each that the request asks for. Raises nothing
        but CancelledError. Answers of the same words are judged and corrected once; all flagged ones are
        corrected at the same time, each for its share of what the policy lets a request cost.

        read: returns the answers; those that are missing, and all if it raises, are unscored. is_large:
        whether it takes long.
        """
        if not self._others:
            return [await self.report_on(lambda: next(iter(read())), is_large=is_large)]
        each = [self, *self._others]
        run = self._run if is_large else at_once
        try:
            answers = list(await run(read))[: len(each)]
        except Exception:  # noqa: BLE001 - logged and counted by `_failed`
            self._failed("reading", "the answers could not be read")
            answers = []
        for examination, answer in zip(each, answers, strict=False):
            examination.answer = answer
        said = [(answer.text, answer.calls) for answer in answers]
        first = [said.index(words) for words in said]
        places = sorted(set(first))
        judged = await asyncio.gather(
            *(
                each[place]._verdict_on(partial(answers.__getitem__, place), is_large=is_large)
                for place in places
            )
        )
        count = sum(_is_to_be_corrected(report, self.policy) for report, _ in judged)
        settling = (
            each[place]._settled(*found, max(1, count)) for place, found in zip(places, judged, strict=True)
        )
        settled = dict(zip(places, await asyncio.gather(*settling), strict=True))
        reports = [settled[place] for place in first]
        missing = ladder.fail_closed(unscored(self.plan, "incomplete"), self.policy)
        reports += [missing] * (len(each) - len(reports))
        return [replace(report, choice=number) for number, report in enumerate(reports)]

    async def _read(self, read: Callable[[], Reply], run: Run) -> Reply | None:
        try:
            return await run(lambda: self._as_judged(read()))
        except Exception:  # noqa: BLE001 - logged and counted by `_failed`
            self._failed("reading", "the answer could not be read")
            return None

    def _as_judged(self, answer: Reply) -> Reply:
        """The answer in the form that is judged; in a forced form, one from elsewhere in place of our own."""
        if not self.plan.schedule.constrained:
            return answer
        if self.given is not None:
            answer = replace(self.given, prompt_tokens=answer.prompt_tokens)
        return as_written(answer)

    async def _replies(self) -> Replies:
        if self._probing is None:
            return {}
        try:
            return await self._probing
        except Exception:  # noqa: BLE001 - logged and counted by `_failed`
            self._failed("probing", "the probes failed")
            return {}

    async def _judged(self, replies: Replies, *, is_large: bool) -> Report:
        """The report before any correction. An error of ours must not cost the client the answer."""
        answer = self.answer
        if answer is None:
            return unscored(self.plan, "incomplete", replies)
        try:
            if self.given is not None and not self.plan.schedule.constrained:
                judged = partial(self._judge.report_on_given, self.plan, self.given, answer, replies)
            else:
                judged = partial(self._judge.report, self.plan, answer, replies)
            run = self._run if is_large else _run_for(answer, replies, self._run)
            return await run(judged)
        except Exception:  # noqa: BLE001 - logged and counted by `_failed`
            self._failed("judging", "the answer could not be judged")
            return unscored(self.plan, "incomplete", replies)

    async def _corrected(self, report: Report, replies: Replies, max_tokens: int) -> Report:
        """The report, with a flagged answer corrected as far as policy, budget and `max_tokens` allow."""
        if self.answer is None or not _is_to_be_corrected(report, self.policy):
            return report
        if self.answer.calls:
            return replace(report, notes=(*report.notes, NOTE_CALLS))
        granted, unspent = self._budget.take(max_tokens), 0
        try:  # a cancelled request gets nothing back: what it spent is not known
            report = await mitigate(
                self.plan,
                self._judge,
                self.answer,
                replies,
                report,
                self._correct,
                policy=self.policy,
                max_tokens=granted,
                run=self._run,
            )
            unspent = granted - (report.mitigation.tokens if report.mitigation else 0)
        except Exception:  # noqa: BLE001 - logged and counted by `_failed`
            self._failed("correcting", "the correction failed")
        finally:
            self._budget.give_back(unspent)
        return report

    def _failed(self, step: str, sentence: str) -> None:
        logger.exception(sentence)
        self._on_failure(step)


def _free(examinations: list[Examination]) -> None:
    """Frees their answers one by one, and lets other requests go on for as long as each has taken."""
    if examinations:
        answer = examinations.pop().answer
        tokens = len(answer.positions) if answer else 0
        del answer
        asyncio.get_running_loop().call_later(tokens * FREE_S, _free, examinations)


async def probe(
    plan: Plan,
    judge: Judge,
    complete: Complete,
    *,
    future_answer: FutureAnswer | None = None,
    run: Run = at_once,
) -> Replies:
    """The replies to the views of a plan, by name; `schedule` says when each view is sent. Raises nothing but
    CancelledError.

    future_answer: the answer, once it is complete. Without one, all views are sent at once. run: judges
    longer answers in between.
    """
    config = judge.config

    async def settles(answer: Reply, replies: Replies) -> bool:
        work = partial(judge.settles, plan, answer, replies)
        return await _run_for(answer, replies, run)(work)

    replies = await schedule.ask(plan.schedule, complete, settles=settles, future_answer=future_answer)
    answer = await asyncio.shield(future_answer) if future_answer is not None else None
    if answer is None:
        return replies
    if like_views.is_needed(plan, answer):
        can_be_asked = not answer.skip and like_views.can_be_asked(plan, answer)
        return await like_views.ask(plan, complete, answer, replies) if can_be_asked else replies
    if not config.regenerate:
        return replies
    plan = judge.informed(plan, replies)
    scored: Callable[[], Score | None] = partial(judge.score, plan, answer, replies)
    is_open = partial(regenerate.should_regenerate, plan, answer, scored)
    if not await schedule.false_on_error(at_once(is_open), "the first word"):
        return replies
    return await regenerate.ask(plan, complete, answer, replies)


async def mitigate(
    plan: Plan,
    judge: Judge,
    answer: Reply,
    replies: Replies,
    report: Report,
    complete: Complete,
    *,
    policy: Policy,
    max_tokens: int | None = None,
    run: Run = at_once,
) -> Report:
    """The report with what was tried about a flagged answer; unchanged if there is nothing to do.

    max_tokens: a limit on the cost besides the policy's own. run: judges longer answers. Raises nothing but
    CancelledError: a failing rung leaves the original answer.
    """
    if not _is_to_be_corrected(report, policy):
        return report
    flagged = FlaggedAnswer(
        plan=plan,
        answer=answer,
        replies=scoring.comparable(answer, replies),
        report=report,
        min_option_mass=judge.config.thresholds.min_option_mass,
    )
    examine = partial(_examined, judge, run)
    mitigation = await ladder.climb(flagged, policy, complete, examine, max_tokens=max_tokens)
    return replace(report, action=mitigation.action, mitigation=mitigation)


def _run_for(answer: Reply, replies: Replies, run: Run) -> Run:
    """How an answer of this length is judged; where its own tokens are not known, views tell how many."""
    scored = (len(reply.forced) for reply in replies.values() if isinstance(reply, Reply))
    return run if max(len(answer.positions), *scored, 0) > QUICK_TOKENS else at_once


async def _examined(judge: Judge, run: Run, plan: Plan, complete: Complete) -> tuple[Reply, Report]:
    """A request sent and judged, but not corrected. Raises EndpointError if it gets no answer."""
    async with Examination(plan, complete, judge, policy=Policy(), run=run) as examination:
        answer = reply_of(await complete(examination.body))
        return answer, await examination.report_on(lambda: answer)


def _is_to_be_corrected(report: Report, policy: Policy) -> bool:
    """Whether a policy does something about this answer. Neglect is no interference: to leave another
    modality out does not help, so such an answer is only annotated.
    """
    is_interference = report.verdict.state is State.FLAGGED and report.verdict.cause is not Cause.NEGLECT
    return policy.action != ANNOTATE and is_interference
