"""`modint-guard calibrate --unlabelled`: the null of a model, measured on a file of requests without labels.

The packaged items are asked first, then each request once with something harmless planted into it, and every
other one with a lie as well: what a gateway does in the background, done at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from modint_guard.chat.rebuild import rebuild
from modint_guard.chat.reply import reply_of
from modint_guard.data.item import Item
from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError
from modint_guard.evaluation.asking import ask_each
from modint_guard.evaluation.null_measure import checkup_null, examined, is_flagged, said_something_else
from modint_guard.evaluation.planting import harmless, lying
from modint_guard.evaluation.runner import request_for
from modint_guard.guard import Guard
from modint_guard.judging.null import Null, NullScore, with_lie, with_score
from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.report import Report
from modint_guard.types import JSON, Complete, Plan, Relevant, Statistic

ORIGIN = "requests"  # of their scores
CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """What one request showed: the statistic of a harmless input, and the report on a lie that changed the
    answer.
    """

    source: str
    score: Statistic | None = None
    lie: Report | None = None


async def null_of_requests(items: Sequence[Item], complete: Complete, model: str, *, seed: int) -> Null:
    """The null of a model by the packaged items and by these requests; a source has one score. Raises
    ConfigError if nothing can be planted into any of them, EndpointError if one gets no answer.
    """
    guard = Guard()
    jobs = {n: partial(_asked, guard, complete, item, model, n, seed) for n, item in enumerate(items)}
    shown = list((await ask_each(jobs, concurrency=CONCURRENCY)).values())
    if not any(each.score for each in shown):
        raise ConfigError(
            f"nothing could be planted into any of {len(items)} requests: give some with a picture of which"
            " it is known what ought to decide, the picture or the text"
        )
    null = await checkup_null(Null(client_share=1.0), guard, complete, model, concurrency=CONCURRENCY)
    for each in shown:
        if each.score is not None:
            null = with_score(null, NullScore(each.score.value, each.score.length, ORIGIN, each.source))
    for each in shown:
        if each.lie is not None:
            null = with_lie(null, flagged=is_flagged(each.lie, null, guard))
    return null


async def _asked(guard: Guard, complete: Complete, item: Item, model: str, number: int, seed: int) -> Shown:
    """One request with something harmless and, if its number is odd, with a lie."""
    plan, source = guard.plan(request_for(item, model)), item.source or item.id
    if plan.relevant not in WITHOUT_IRRELEVANT or not plan.chat.images:
        return Shown(source)
    rng = seeded("planted", seed, item.id)
    answer = reply_of(await complete(_alone(plan))).text if plan.relevant is Relevant.IMAGE else None
    score = lie = None
    if planted := harmless(plan.chat, plan.relevant, answer, rng):
        found = await examined(guard, complete, planted.body, plan.relevant, planted.context)
        score = found[1].statistic if found else None
    if number % 2 and (planted := lying(plan.chat, plan.relevant, answer, rng)):
        told = await examined(guard, complete, planted.body, plan.relevant, planted.context)
        lie = told[1] if told and said_something_else(told[0].text, answer or "") else None
    return Shown(source, score, lie)


def _alone(plan: Plan) -> JSON:
    """The request without its context."""
    return rebuild(plan.chat, context="") if plan.chat.context is not None else plan.body
