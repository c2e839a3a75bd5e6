"""The ladder: tries one rung after another, until one settles a flagged answer or nothing more may be spent.

    rungs_of            which rungs are tried, by policy, cause, relevance and form of the answer
    _within             runs each of them within the tokens and the time that are left
    Attempt.settles     the first rung that corrects or confirms the answer ends the ladder; if none does, the
                        policy says what is served

Every rung is tried at most once and none calls the ladder, so there are no loops. A rung that fails, is late
or would cost too much leaves the original answer as it was; the report names it with its cost. If a call was
cut off, its real cost is unknown, and the rung counts as the most that it might have cost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from modint_guard.chat.reply import usage_of
from modint_guard.errors import EndpointTimeout
from modint_guard.mitigation import rungs
from modint_guard.mitigation.policy import Policy, may_replace, rungs_of
from modint_guard.mitigation.rungs import Attempt, Examine, FlaggedAnswer
from modint_guard.report import Mitigation, Report, RungResult
from modint_guard.types import ABSTAIN, ANNOTATE, JSON, Complete, RungOutcome, State

Clock = Callable[[], float]
UNSCORED_TEXT = "No answer is given: it could not be judged."
logger = logging.getLogger(__name__)


async def climb(
    flagged: FlaggedAnswer,
    policy: Policy,
    complete: Complete,
    examine: Examine,
    *,
    max_tokens: int | None = None,
    clock: Clock = time.monotonic,
) -> Mitigation:
    """Try the policy's rungs in order until one settles the answer. Raises nothing but CancelledError.

    complete: sends a body to the engine. examine: asks and judges a request, for `escalate`. max_tokens: a
    limit on the cost of all rungs together, besides the policy's own.
    """
    allowed = policy.max_tokens if max_tokens is None else min(policy.max_tokens, max_tokens)
    until = clock() + policy.deadline_s
    cause, relevant = flagged.report.verdict.cause, flagged.report.relevant
    tried: list[RungResult] = []
    for rung in rungs_of(policy, cause, relevant, flagged.form):
        left = allowed - sum(result.tokens for result in tried)
        attempt, result = await _within(rung, flagged, policy, complete, examine, left, until, clock)
        tried.append(result)
        if attempt.settles:
            return _mitigation(flagged, policy, tried, attempt)
    if policy.otherwise == ABSTAIN and ABSTAIN not in {result.rung for result in tried}:
        attempt = await rungs.abstain(flagged, policy, complete, examine)
        tried.append(RungResult(ABSTAIN, attempt.outcome, attempt.text))
        return _mitigation(flagged, policy, tried, attempt)
    return _mitigation(flagged, policy, tried, None)


def fail_closed(report: Report, policy: Policy, original: str = "") -> Report:
    """The report with an abstention, if the policy serves no answer without a verdict and there is none.

    original: the text of the engine's answer; "" if it was not asked.
    """
    is_open = report.verdict.state is not State.UNSCORED and report.verdict.reason != "overload"
    if is_open or policy.unscored != ABSTAIN:
        return report
    withheld = Mitigation(
        asked=policy.action,
        action=ABSTAIN,
        original=original,
        answer=UNSCORED_TEXT,
        finish_reason="content_filter",
        rungs=(RungResult(ABSTAIN, RungOutcome.ABSTAINED, UNSCORED_TEXT),),
    )
    return replace(report, action=ABSTAIN, mitigation=withheld)


def served(completion: JSON, reports: Sequence[Report]) -> JSON:
    """The completion with corrected answers in it; unchanged if every original answer stands.

    reports: on its choices, in their order. The log-probabilities and token ids of a replaced answer are
    taken out: they belong to the original.
    """
    mitigations = [report.mitigation for report in reports]
    if all(mitigation is None or mitigation.answer is None for mitigation in mitigations):
        return completion
    pairs = zip(completion["choices"], mitigations, strict=False)
    return {**completion, "choices": [_served(*pair) for pair in pairs]}


def _served(choice: JSON, mitigation: Mitigation | None) -> JSON:
    if mitigation is None or mitigation.answer is None:
        return choice
    replaced = {
        **choice,
        "finish_reason": mitigation.finish_reason,
        "message": {**choice["message"], "content": mitigation.answer},
    }
    return {**replaced, **{key: None for key in ("logprobs", "token_ids", "stop_reason") if key in choice}}


def _mitigation(
    flagged: FlaggedAnswer, policy: Policy, tried: list[RungResult], settling: Attempt | None
) -> Mitigation:
    replacing = (RungOutcome.MENDED, RungOutcome.ABSTAINED)
    served_in_place = settling if settling and settling.outcome in replacing else None
    return Mitigation(
        asked=policy.action,
        action=tried[-1].rung if served_in_place else ANNOTATE,
        original=flagged.answer.text,
        answer=served_in_place.text if served_in_place else None,
        finish_reason=served_in_place.finish_reason if served_in_place else None,
        rungs=tuple(tried),
    )


async def _within(
    rung: str,
    flagged: FlaggedAnswer,
    policy: Policy,
    complete: Complete,
    examine: Examine,
    tokens_left: int,
    until: float,
    clock: Clock,
) -> tuple[Attempt, RungResult]:
    """Run one rung within the tokens and the time left. If it goes wrong, the answer stays as it was."""
    start, meter, at_most = clock(), Meter(complete), 0
    try:
        at_most = rungs.tokens_of(rung, flagged, policy)
        if rung != ABSTAIN and not may_replace(policy, flagged.report):
            attempt = rungs.UNFIT
        elif at_most > max(0, tokens_left):
            attempt = Attempt(RungOutcome.BUDGET)
        elif at_most and until <= start:
            attempt = Attempt(RungOutcome.TIMEOUT)
        else:
            async with asyncio.timeout(max(0.0, until - start)):
                attempt = await rungs.BY_NAME[rung](flagged, policy, meter, examine)
    except (TimeoutError, EndpointTimeout):
        attempt = Attempt(RungOutcome.TIMEOUT)
    except Exception as exc:  # noqa: BLE001 - like the probe boundary: logged here, counted by its outcome
        logger.warning("rung %s failed: %s: %s", rung, type(exc).__name__, exc)
        attempt = Attempt(RungOutcome.FAILED)
    if attempt.outcome is RungOutcome.MISSING:
        at_most = 0  # calls to a model that is not served cost nothing
    ms = (clock() - start) * 1000
    return attempt, meter.charged(RungResult(rung, attempt.outcome, attempt.text, ms=ms), at_most)


class Meter:
    """A `Complete` that counts the tokens of its calls, as the endpoint reports them.

    cut_off: whether a call was cancelled or timed out, so that its cost is not known.
    """

    def __init__(self, complete: Complete) -> None:
        self._complete = complete
        self.tokens = 0
        self.cached_tokens = 0
        self.cut_off = False

    async def __call__(self, body: JSON) -> JSON:
        try:
            completion = await self._complete(body)
        except (asyncio.CancelledError, EndpointTimeout):
            self.cut_off = True
            raise
        usage = usage_of(completion)
        self.tokens += usage.prompt_tokens + usage.completion_tokens
        self.cached_tokens += usage.cached_tokens
        return completion

    def charged(self, result: RungResult, at_most: int) -> RungResult:
        """The rung's result with the cost of its calls; with `at_most` tokens if one was cut off."""
        tokens = max(self.tokens, at_most) if self.cut_off else self.tokens
        return replace(result, tokens=tokens, cached_tokens=self.cached_tokens)
