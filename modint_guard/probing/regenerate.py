"""Short answers of several words, of which the first word says little: they are generated again as a whole.

If the engine cannot score a given answer, an answer of several words is compared at its first one, and every
view may begin with "The". A short answer (`is_short`) whose first word does not flip is therefore generated
again as a whole: without the irrelevant modality and, unless that gives the same answer, under the other
cells and once for the unchanged request. The texts are then compared (`text_match`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from modint_guard.judging.risk import WITHOUT_IRRELEVANT
from modint_guard.judging.text_match import MAX_TOKENS, is_short, same_answer
from modint_guard.probing import probe
from modint_guard.probing.views import short_body
from modint_guard.types import CELLS, JSON, NOOP, Complete, Failure, Plan, Replies, Reply, Score, View


def should_regenerate(plan: Plan, answer: Reply, scored: Callable[[], Score | None]) -> bool:
    """Whether a short answer of several words was compared at its first word only, and that word did not flip
    in the view without the irrelevant modality. Never so for an answer that was cut off.

    scored: computes the score of the answer; called only if it is needed.
    """
    if answer.skip or answer.finish_reason != "stop" or not is_short(answer) or not _bodies(plan):
        return False
    if (score := scored()) is None or not score.partial:
        return False
    first = score.cells.get(WITHOUT_IRRELEVANT[plan.judged_as])
    return first is not None and first.flip is not True


async def ask(plan: Plan, complete: Complete, answer: Reply, replies: Replies) -> Replies:
    """The replies, with answers generated as a whole added to them. Raises nothing but CancelledError.

    Each of the two steps has the plan's deadline to itself.
    """
    first = WITHOUT_IRRELEVANT[plan.judged_as]
    bodies = _bodies(plan)
    replies = await _generated(plan, complete, replies, {first: bodies.pop(first)})
    if says_the_same(plan, answer, replies):
        return replies
    return await _generated(plan, complete, replies, {**bodies, NOOP: plan.body})


def says_the_same(plan: Plan, answer: Reply, replies: Replies) -> bool:
    """Whether the view without the irrelevant modality, generated as a whole, gives the same answer."""
    view = whole_replies(replies).get(WITHOUT_IRRELEVANT.get(plan.judged_as, ""))
    return isinstance(view, Reply) and same_answer(answer.text, view.text, _labels(plan))


def is_complete(plan: Plan, replies: Replies) -> bool:
    """Whether every cell and the unchanged request were generated as a whole."""
    bodies = _bodies(plan)
    return bool(bodies) and {*bodies, NOOP} <= whole_replies(replies).keys()


def whole_replies(replies: Replies) -> dict[str, Reply | Failure]:
    """The replies that were generated as a whole."""
    return {name: reply for name, reply in replies.items() if isinstance(reply, Reply) and reply.whole}


def _bodies(plan: Plan) -> dict[str, JSON]:
    """The cells' bodies by name; none if no modality is known to be irrelevant or its cell is missing."""
    bodies = {view.name: view.body for view in plan.views if view.name in CELLS}
    return bodies if WITHOUT_IRRELEVANT.get(plan.judged_as) in bodies else {}


async def _generated(
    plan: Plan, complete: Complete, replies: Replies, bodies: Mapping[str, JSON]
) -> dict[str, Reply | Failure]:
    views = [View(name, short_body(body, MAX_TOKENS, 0)) for name, body in bodies.items()]
    generated = await probe.run(views, complete, deadline_s=plan.schedule.deadline_s)
    return {**replies, **{name: _with_whole(replies.get(name), reply) for name, reply in generated.items()}}


def _with_whole(short: Reply | Failure | None, reply: Reply | Failure) -> Reply | Failure:
    """The whole answer, with the first word's distribution of the short reply and the cost of both calls."""
    if not isinstance(reply, Reply):
        return short or reply
    if not isinstance(short, Reply):
        return replace(reply, whole=True)
    counted = probe.with_cost_of(short, reply)
    return replace(counted, text=reply.text, finish_reason=reply.finish_reason, whole=True)


def _labels(plan: Plan) -> list[str]:
    return [option.label for option in plan.chat.options]
