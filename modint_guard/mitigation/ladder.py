"""The ladder: rung after rung, until one settles a flagged answer or nothing more may be spent.

    rungs_of      which rungs, by policy, cause, relevance and form of the answer
    within        each within what is left of the tokens and of the time
    settles       the first that mends or confirms the answer ends it; else the policy says what is served

Every rung is tried at most once and none calls the ladder, so there are no loops. A rung that fails, is late,
or would cost too much leaves the original answer as it was; the report names it with what it cost. Where a
call was cut off nobody knows that: the rung counts as the most that it might have cost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from modint_guard.errors import EndpointTimeout
from modint_guard.mitigation import rungs
from modint_guard.mitigation.policy import Policy, may_replace, rungs_of
from modint_guard.mitigation.rungs import Attempt, Examine, FlaggedAnswer
from modint_guard.types import (
    ABSTAIN,
    ANNOTATE,
    JSON,
    Complete,
    Mitigation,
    RungOutcome,
    RungResult,
)

Clock = Callable[[], float]
logger = logging.getLogger(__name__)


async def climb(
    case: FlaggedAnswer,
    policy: Policy,
    complete: Complete,
    examine: Examine,
    *,
    max_tokens: int | None = None,
    clock: Clock = time.monotonic,
) -> Mitigation:
    """Try the policy's rungs in order until one settles the answer. Raises nothing but CancelledError.

    max_tokens: a further limit on what all rungs may cost, besides the policy's own.
    """
    allowed = policy.max_tokens if max_tokens is None else min(policy.max_tokens, max_tokens)
    until = clock() + policy.deadline_s
    cause, relevant = case.report.verdict.cause, case.report.relevant
    tried: list[RungResult] = []
    for rung in rungs_of(policy, cause, relevant, case.form):
        left = allowed - sum(each.tokens for each in tried)
        found, result = await _within(rung, case, policy, complete, examine, left, until, clock)
        tried.append(result)
        if found.settles:
            return _mitigation(case, policy, tried, found)
    if policy.otherwise == ABSTAIN and ABSTAIN not in {each.rung for each in tried}:
        found = await rungs.abstain(case, policy, complete, examine)
        tried.append(RungResult(ABSTAIN, found.outcome, found.text))
        return _mitigation(case, policy, tried, found)
    return _mitigation(case, policy, tried, None)


def served(completion: JSON, mitigation: Mitigation | None) -> JSON:
    """The completion with the answer that is to be served; the given one where the original stands. Its
    log-probabilities and token ids were the original's, and go.
    """
    if mitigation is None or mitigation.answer is None:
        return completion
    choice = {
        **completion["choices"][0],
        "finish_reason": mitigation.finish_reason,
        "message": {**completion["choices"][0]["message"], "content": mitigation.answer},
    }
    for key in ("logprobs", "token_ids", "stop_reason"):
        if key in choice:
            choice[key] = None
    return {**completion, "choices": [choice]}


def _mitigation(
    case: FlaggedAnswer, policy: Policy, tried: list[RungResult], found: Attempt | None
) -> Mitigation:
    mended = found is not None and found.outcome in (RungOutcome.MENDED, RungOutcome.ABSTAINED)
    return Mitigation(
        asked=policy.action,
        action=tried[-1].rung if mended else ANNOTATE,
        original=case.answer.text,
        answer=found.text if found and mended else None,
        finish_reason=found.finish_reason if found and mended else None,
        rungs=tuple(tried),
    )


async def _within(
    rung: str,
    case: FlaggedAnswer,
    policy: Policy,
    complete: Complete,
    examine: Examine,
    tokens_left: int,
    until: float,
    clock: Clock,
) -> tuple[Attempt, RungResult]:
    """One rung within what is left; whatever goes wrong in it leaves the answer as it was."""
    start, meter, at_most = clock(), Meter(complete), 0
    try:
        at_most = rungs.tokens_of(rung, case, policy)
        if rung != ABSTAIN and not may_replace(policy, case.report):
            found = rungs.UNFIT
        elif at_most > max(0, tokens_left):
            found = Attempt(RungOutcome.BUDGET)
        elif at_most and until <= start:
            found = Attempt(RungOutcome.TIMEOUT)
        else:
            async with asyncio.timeout(max(0.0, until - start)):
                found = await rungs.BY_NAME[rung](case, policy, meter, examine)
    except (TimeoutError, EndpointTimeout):
        found = Attempt(RungOutcome.TIMEOUT)
    except Exception as exc:  # noqa: BLE001 - like the probe boundary: logged here, counted by its outcome
        logger.warning("rung %s failed: %s: %s", rung, type(exc).__name__, exc)
        found = Attempt(RungOutcome.FAILED)
    if found.outcome is RungOutcome.MISSING:
        at_most = 0  # of a model that is not there no call costs anything
    ms = (clock() - start) * 1000
    return found, meter.charged(RungResult(rung, found.outcome, found.text, ms=ms), at_most)


class Meter:
    """A `Complete` that counts the tokens of its calls, as the endpoint reports them."""

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
        usage = completion.get("usage") or {}
        self.tokens += int(usage.get("prompt_tokens") or 0) + int(usage.get("completion_tokens") or 0)
        details = usage.get("prompt_tokens_details") or {}
        self.cached_tokens += int(details.get("cached_tokens") or 0)
        return completion

    def charged(self, result: RungResult, at_most: int) -> RungResult:
        """The rung's result with what its calls cost. Where one was cut off nobody will know: then all that
        was set aside for them counts."""
        tokens = max(self.tokens, at_most) if self.cut_off else self.tokens
        return replace(result, tokens=tokens, cached_tokens=self.cached_tokens)
