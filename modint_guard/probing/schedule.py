"""When the views of a request are sent: with it, once its answer is there, or not at all.

with the request    the first view, or, without an early stop, all of them
with the answer     a longer answer, to be scored as a whole under these views (`teacher_forcing`)
then                the other views, unless the first settles the verdict
last                under a policy that corrects answers, what neither modality would say, unless the others
                    settle the verdict
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from modint_guard.chat.reply import answer_positions
from modint_guard.probing import probe
from modint_guard.probing.probe import Answered
from modint_guard.probing.teacher_forcing import answer_text, forced_body, forced_reply
from modint_guard.types import CELLS, TEACHER_FORCED, Complete, Failure, Replies, Reply, Schedule, View

logger = logging.getLogger(__name__)
Settles = Callable[[Reply, Replies], bool]  # whether these replies suffice for a verdict on this answer


async def ask(
    schedule: Schedule, complete: Complete, *, settles: Settles, answered: Answered | None = None
) -> Replies:
    """The reply or failure of each view that was sent, by name. Raises nothing but CancelledError.

    Without `answered` all views are sent at once. With it the deadline counts from the answer, and anew for
    each later stage.
    """
    if answered is None:
        return await probe.run(schedule.views, complete, deadline_s=schedule.deadline_s)
    first, *others = schedule.stages
    replies = await _stage(schedule, schedule.stage(first), complete, answered)
    for names in others:
        answer = await asyncio.shield(answered)
        if answer is None or surely(partial(settles, answer, replies), "the first probes"):
            break
        replies = {**replies, **await _stage(schedule, schedule.stage(names), complete, answered)}
    return replies


def surely(question: Callable[[], bool], what: str) -> bool:
    """The answer to a question about replies. If it fails, no, with a line in the log that `what` could not
    be judged: whatever goes wrong there must not cost the user the answer.
    """
    try:
        return question()
    except Exception:
        logger.exception("%s could not be judged", what)
        return False


async def _stage(
    schedule: Schedule, views: Sequence[View], complete: Complete, answered: Answered
) -> Replies:
    """Some views, and a longer answer scored under each cell among them."""
    sent = probe.run(views, complete, deadline_s=schedule.deadline_s, answered=answered)
    if schedule.method != TEACHER_FORCED:
        return await sent
    replies, forced = await asyncio.gather(sent, _forced(schedule, views, complete, answered))
    return {name: _with_forced(reply, forced.get(name)) for name, reply in replies.items()}


async def _forced(
    schedule: Schedule, views: Sequence[View], complete: Complete, answered: Answered
) -> Replies:
    """The answer as each cell scores it; nothing for an answer of one token or of too many."""
    answer = await asyncio.shield(answered)  # the end of this task must not cancel what others wait for
    size = len(answer_positions(answer)) if answer and not answer.skip else 0
    if answer is None or not 1 < size <= schedule.max_forced_tokens:
        return {}
    text, top = answer_text(answer), schedule.forced_logprobs
    cells = [View(view.name, forced_body(view.body, text, top)) for view in views if view.name in CELLS]
    read = partial(forced_reply, answer=answer)
    return await probe.run(cells, complete, deadline_s=schedule.deadline_s, read=read)


def _with_forced(reply: Reply | Failure, forced: Reply | Failure | None) -> Reply | Failure:
    """A view's reply with the answer as the view scores it, and with what both calls cost."""
    if not isinstance(reply, Reply) or not isinstance(forced, Reply):
        return reply
    return replace(probe.with_cost_of(reply, forced), forced=forced.forced)
