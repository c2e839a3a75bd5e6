"""When the views of a request are sent: with it, once its answer is there, or not at all.

with the request    the first view, or, without an early stop, all of them
with the answer     the answer to be scored as a whole under these views (`forced`), if it is a longer one
then                the other views, unless the first settles the verdict
last                under a policy that mends, what neither modality would say, unless the others settle it
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from modint_guard.chat.reply import answer_positions
from modint_guard.config import GuardConfig
from modint_guard.probing import probe
from modint_guard.probing.probe import Answered
from modint_guard.probing.teacher_forcing import answer_text, forced_body, forced_reply
from modint_guard.types import CELLS, Complete, Plan, Replies, Reply, View

logger = logging.getLogger(__name__)
Settles = Callable[[Reply, Replies], bool]  # whether these replies suffice for a verdict on this answer


async def ask(
    plan: Plan, complete: Complete, config: GuardConfig, *, settles: Settles, answered: Answered | None = None
) -> Replies:
    """The reply or failure of each view that was sent, by name. Raises nothing but CancelledError.

    The deadline counts from `answered`, and anew for the views that earlier ones did not save.
    """
    if answered is None:
        return await probe.run(plan.views, complete, deadline_s=plan.deadline_s)
    first, *others = _stages_of(plan)
    replies = await _stage(plan, first, complete, config, answered)
    for views in others:
        answer = await asyncio.shield(answered)
        if answer is None or surely(partial(settles, answer, replies), "the first probes"):
            break
        replies = {**replies, **await _stage(plan, views, complete, config, answered)}
    return replies


def _stages_of(plan: Plan) -> list[list[View]]:
    """The views of each stage; the first may be empty, no other is."""
    first = [view for view in plan.views if view.name not in plan.later]
    second = [view for view in plan.views if view.name in plan.later - plan.last]
    last = [view for view in plan.views if view.name in plan.later & plan.last]
    return [first, *(views for views in (second, last) if views)]


def surely(question: Callable[[], bool], what: str) -> bool:
    """What a question about replies says; no where it fails, and a line in the log that `what` could not be
    judged: whatever goes wrong there must not cost the user the answer."""
    try:
        return question()
    except Exception:
        logger.exception("%s could not be judged", what)
        return False


async def _stage(
    plan: Plan, views: Sequence[View], complete: Complete, config: GuardConfig, answered: Answered
) -> Replies:
    """Some views, and a longer answer scored under each cell among them."""
    sent = probe.run(views, complete, deadline_s=plan.deadline_s, answered=answered)
    if not plan.forcing:
        return await sent
    replies, forced = await asyncio.gather(sent, _forced(plan, views, complete, config, answered))
    return {name: probe.joined(reply, forced.get(name)) for name, reply in replies.items()}


async def _forced(
    plan: Plan, views: Sequence[View], complete: Complete, config: GuardConfig, answered: Answered
) -> Replies:
    """The answer as each cell scores it; nothing for an answer of one token or of too many."""
    answer = await asyncio.shield(answered)  # our end must not cancel what others wait for
    size = len(answer_positions(answer)) if answer and not answer.skip else 0
    if answer is None or not 1 < size <= config.max_forced_tokens:
        return {}
    top = min(config.forced_logprobs, plan.top_logprobs)
    text = answer_text(answer)
    cells = [View(view.name, forced_body(view.body, text, top)) for view in views if view.name in CELLS]
    read = partial(forced_reply, answer=answer)
    return await probe.run(cells, complete, deadline_s=plan.deadline_s, read=read)
