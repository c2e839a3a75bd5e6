"""The grey zone of the first word: short answers of several words, of which the first says little.

Where the engine cannot score a given answer, a longer one is compared at its first word, and every view may
begin with "The". A short one (`is_short`) whose first word stays is therefore generated again as a whole:
without the irrelevant modality, and, unless that says the same, under the other cells and once for the
unchanged request. Flips are then told by the words (`regenerated`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.judging.text_match import MAX_TOKENS, is_short, same_answer
from modint_guard.probing import probe
from modint_guard.probing.views import asked_briefly
from modint_guard.types import CELLS, JSON, NOOP, Complete, Failure, Plan, Replies, Reply, Score, View


def is_open(plan: Plan, answer: Reply, scored: Callable[[], Score | None]) -> bool:
    """Whether a short answer of several words was compared at its first one, and that one did not flip where
    the modality that is known to be irrelevant was left out. Not one that was cut off: nobody knows its end.

    scored: the score of the answer, which is made only where it is wanted.
    """
    if answer.skip or answer.finish_reason != "stop" or not is_short(answer) or not _bodies(plan):
        return False
    if (score := scored()) is None or not score.partial:
        return False
    first = score.cells.get(WITHOUT_IRRELEVANT[plan.relevant])
    return first is not None and first.flip is not True


async def ask(plan: Plan, complete: Complete, answer: Reply, replies: Replies) -> Replies:
    """The replies with whole ones among them. Raises nothing but CancelledError; each step has the plan's
    deadline.
    """
    first = WITHOUT_IRRELEVANT[plan.relevant]
    bodies = _bodies(plan)
    replies = await _generated(plan, complete, replies, {first: bodies.pop(first)})
    if says_the_same(plan, answer, replies):
        return replies
    return await _generated(plan, complete, replies, {**bodies, NOOP: plan.body})


def says_the_same(plan: Plan, answer: Reply, replies: Replies) -> bool:
    """Whether the whole answer without the irrelevant modality is the answer."""
    view = whole(replies).get(WITHOUT_IRRELEVANT.get(plan.relevant, ""))
    return isinstance(view, Reply) and same_answer(answer.text, view.text, _labels(plan))


def is_closed(plan: Plan, replies: Replies) -> bool:
    """Whether every cell, and the unchanged request, was generated whole."""
    bodies = _bodies(plan)
    return bool(bodies) and {*bodies, NOOP} <= whole(replies).keys()


def whole(replies: Replies) -> dict[str, Reply | Failure]:
    """The replies that were generated whole."""
    return {name: reply for name, reply in replies.items() if isinstance(reply, Reply) and reply.whole}


def _bodies(plan: Plan) -> dict[str, JSON]:
    """The cells by name; none where no modality is known to be irrelevant, or there is nothing of it."""
    bodies = {view.name: view.body for view in plan.views if view.name in CELLS}
    return bodies if WITHOUT_IRRELEVANT.get(plan.relevant) in bodies else {}


async def _generated(
    plan: Plan, complete: Complete, replies: Replies, bodies: Mapping[str, JSON]
) -> dict[str, Reply | Failure]:
    views = [View(name, asked_briefly(body, MAX_TOKENS, 0)) for name, body in bodies.items()]
    generated = await probe.run(views, complete, deadline_s=plan.schedule.deadline_s)
    return {**replies, **{name: _with_whole(replies.get(name), reply) for name, reply in generated.items()}}


def _with_whole(known: Reply | Failure | None, reply: Reply | Failure) -> Reply | Failure:
    """The whole answer beside the first word's distribution, with what both calls cost."""
    if not isinstance(reply, Reply):
        return known or reply
    if not isinstance(known, Reply):
        return replace(reply, whole=True)
    counted = probe.with_cost_of(known, reply)
    return replace(counted, text=reply.text, finish_reason=reply.finish_reason, whole=True)


def _labels(plan: Plan) -> list[str]:
    return [option.label for option in plan.chat.options]
