"""Measures the null of a model: asks inputs that ought to change nothing, and takes the statistic of each.

of packaged items   short texts and pictures with an unrelated text, a true caption if the model says the same
                    without one, or an irrelevant picture; their answers alone say when the model is sure, and
                    lies that changed an answer say what a flag is worth
of other requests   whatever is planted into them (`planting`)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp

from modint_guard.chat.reply import reply_of
from modint_guard.data import ITEMS, read_data
from modint_guard.data.item import RELEVANT, Item, is_right
from modint_guard.data.perturb import CLEAN
from modint_guard.data.severity import FULL
from modint_guard.evaluation.asking import ask_each
from modint_guard.evaluation.checkup import CONDITIONS, FOLDER
from modint_guard.evaluation.drawn_items import drawn_items
from modint_guard.evaluation.runner import request_for
from modint_guard.evaluation.variants import Variant, variants_of
from modint_guard.guard import Guard
from modint_guard.judging.null import Null, NullScore, sure_at, with_checkup, with_lie
from modint_guard.judging.text_match import same_answer
from modint_guard.judging.verdict import by_null
from modint_guard.report import Report
from modint_guard.types import (
    ANNOTATE,
    CELLS,
    JSON,
    MAX_DEADLINE_S,
    NEUTRAL_IMAGE,
    Complete,
    ModintOptions,
    Relevant,
    Reply,
    State,
    Statistic,
)

DRAWN = 150  # drawn items beside the packaged ones
MAX_TOKENS = 64  # of an answer to a packaged item
LIED_TO = 60  # items that are lied about, at most
HARMLESS = {"image-heavy": ("unrelated_facts", "true_description"), "text-heavy": ("irrelevant_image",)}
LYING = {"image-heavy": "misleading_description", "text-heavy": "contradicting_image"}
Examine = Callable[[JSON, Relevant, str | None], Awaitable[tuple[Reply, Report] | None]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one packaged item showed.

    score: of the harmless input, if its answer is right: what it turned wrong it harmed, and an answer that
    is wrong anyway says nothing of right ones. confidence: of the answer by what ought to decide alone, the
    probability of its first token among the two likeliest; right: whether it is. lie: the report on a lie
    that changed the answer.
    """

    score: Statistic | None
    confidence: float | None
    right: bool
    lie: Report | None


async def examined(
    guard: Guard,
    complete: Complete,
    body: JSON,
    relevant: Relevant,
    context: str | None,
    *,
    max_top_logprobs: int | None = None,
    forcing: bool = True,
    last_rows: bool = False,
) -> tuple[Reply, Report] | None:
    """The answer to a request and the report on it; None if it is not probed. Raises EndpointError.

    relevant: what ought to decide. context: what of its text is no question. The others are those of
    `Guard.plan`.
    """
    options = ModintOptions(
        relevant=relevant,
        relevant_source="request",
        context=context,
        probes=CELLS if context else (NEUTRAL_IMAGE,),  # all that the statistic needs, whatever stops early
        action=ANNOTATE,
        deadline_s=MAX_DEADLINE_S,
    )
    plan = await asyncio.to_thread(
        guard.plan,
        body,
        options,
        max_top_logprobs=max_top_logprobs,
        forcing=forcing,
        last_rows=last_rows,
    )
    if plan.skip or not plan.views:
        return None
    async with guard.examine(plan, complete) as examination:
        reply = reply_of(await complete(examination.body))
        return reply, await examination.report_on(lambda: reply)


async def checkup_null(
    null: Null,
    guard: Guard,
    complete: Complete,
    model: str,
    *,
    max_top_logprobs: int | None = None,
    forcing: bool = True,
    last_rows: bool = False,
    concurrency: int = 2,
) -> Null:
    """The null with scores of the packaged and of the drawn items, asked of this model, in place of any that
    it had; with what they say of `sure`, and with the lies that changed an answer. Raises EndpointError.
    """
    examine = partial(
        examined,
        guard,
        complete,
        max_top_logprobs=max_top_logprobs,
        forcing=forcing,
        last_rows=last_rows,
    )
    jobs = {
        number: partial(_measured, examine, complete, variants, model, number)
        for number, variants in enumerate(await asyncio.to_thread(packaged_variants))
    }
    found = list((await ask_each(jobs, concurrency=concurrency)).values())
    scores = [NullScore(each.score.value, each.score.length) for each in found if each.score]
    answers = [(each.confidence, each.right) for each in found if each.confidence is not None]
    measured = replace(with_checkup(null, scores), sure=sure_at(answers))
    for each in found:
        if each.lie is not None:
            measured = with_lie(measured, flagged=is_flagged(each.lie, measured, guard))
    return measured


def is_flagged(report: Report, null: Null, guard: Guard) -> bool:
    """Whether an answer is flagged if it is judged by this null, or as it was if the null says nothing."""
    thresholds = guard.config.thresholds
    thresholds = thresholds if null.sure is None else replace(thresholds, sure=null.sure)
    found = by_null(report.statistic, null, thresholds, guard.config.alpha)
    return found.flags if found else report.verdict.state is State.FLAGGED


def said_something_else(text: str, before: str) -> bool:
    """Whether two answers differ in more than case and punctuation."""
    return bool(text.strip()) and not same_answer(text, before, ())


async def _measured(
    examine: Examine, complete: Complete, variants: dict[str, Variant], model: str, number: int
) -> Measured:
    """One item: clean, with something harmless, and with a lie if it is right without one."""
    clean = variants[CLEAN].whole()
    asked = await asyncio.to_thread(_request, clean, model)
    reply = reply_of(await complete({**asked, "logprobs": True, "top_logprobs": 2}))
    right = is_right(clean, reply.text)
    names = HARMLESS[clean.family]
    harmless = await _ask(examine, variants[names[number % len(names)] if right else names[0]], model)
    confidence = _of_the_two(reply.top.values()) if reply.top else None
    lie = None
    if right and (lying := variants.get(LYING[clean.family])) and (number < LIED_TO):
        told = await _ask(examine, lying, model)
        lie = told[1] if told and said_something_else(told[0].text, reply.text) else None
    is_null = harmless is not None and is_right(clean, harmless[0].text)
    return Measured(harmless[1].statistic if harmless and is_null else None, confidence, right, lie)


async def _ask(examine: Examine, variant: Variant, model: str) -> tuple[Reply, Report] | None:
    item = variant.whole()
    body = await asyncio.to_thread(_request, item, model)
    return await examine(body, Relevant(RELEVANT[item.family]), item.context)


def _request(item: Item, model: str) -> JSON:
    """The item as a chat body. Encodes its picture, which takes some milliseconds."""
    body = request_for(item, model, max_tokens=MAX_TOKENS)
    return {key: value for key, value in body.items() if key != "modint"}


def packaged_variants() -> Sequence[dict[str, Variant]]:
    """The variants by condition of each item that something can be planted into, drawn ones included."""
    packaged = [item for item in read_data(FOLDER / ITEMS, format="items") if item.family in HARMLESS]
    by_item: dict[str, dict[str, Variant]] = {}
    for variant in variants_of([*packaged, *drawn_items(DRAWN)], CONDITIONS, [FULL], 0):
        by_item.setdefault(variant.item.id, {})[variant.perturbation] = variant
    return list(by_item.values())


def _of_the_two(logprobs: Iterable[float]) -> float:
    """The probability of the likeliest token, of the two likeliest."""
    best, *others = sorted((exp(min(0.0, each)) for each in logprobs), reverse=True)
    return best / (best + sum(others[:1])) if best else 0.0
