"""When the views of a request are sent: with it, once its answer is complete, or not at all.

with the request    the first view or, without an early stop, all of them; where a longer answer is expected
                    (`Schedule.waits`), none of the cells
with the answer     a longer answer is scored as a whole under these views (`teacher_forcing`)
then                the other views, unless the first one settles the verdict; unless a policy corrects
                    answers, they only score a longer one, and are not asked for a word of their own
last                if a policy corrects answers, the view without either modality, unless the others settle
                    the verdict
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from modint_guard.chat.reply import answer_positions
from modint_guard.probing import probe
from modint_guard.probing.probe import FutureAnswer
from modint_guard.probing.teacher_forcing import answer_text, forced_body, forced_reply, with_first_word
from modint_guard.types import (
    CELLS,
    LEFT_OUT,
    TEACHER_FORCED,
    Complete,
    Failure,
    Replies,
    Reply,
    Schedule,
    View,
)

logger = logging.getLogger(__name__)
_SCORED = (*CELLS, *LEFT_OUT)  # views under which a longer answer is scored
Settles = Callable[[Reply, Replies], Awaitable[bool]]  # whether these suffice for a verdict on this answer


async def ask(
    schedule: Schedule, complete: Complete, *, settles: Settles, future_answer: FutureAnswer | None = None
) -> Replies:
    """The reply or failure of each view that was sent, by name. Raises nothing but CancelledError.

    settles: whether the replies so far suffice, so that no further stage is sent. future_answer: the answer,
    once it is complete; the deadline counts from then, and again from the start of each later stage. If there
    is none, all views are sent at once.
    """
    if future_answer is None:
        return await probe.run(schedule.views, complete, deadline_s=schedule.deadline_s)
    first, *others = schedule.stages
    stage = _waiting_stage if schedule.waits else _stage
    replies = await stage(schedule, schedule.stage(first), complete, future_answer)
    for names in others:
        answer = await asyncio.shield(future_answer)
        if answer is None or await false_on_error(settles(answer, replies), "the first probes"):
            break
        stage = _stage if schedule.corrects else _waiting_stage
        replies = {**replies, **await stage(schedule, schedule.stage(names), complete, future_answer)}
    return replies


async def false_on_error(condition: Awaitable[bool], subject: str) -> bool:
    """Whether a condition on replies holds. If checking it raises, it does not, and the log says that
    `subject` could not be judged: such an error must not cost the user the answer.
    """
    try:
        return await condition
    except Exception:
        logger.exception("%s could not be judged", subject)
        return False


async def _stage(
    schedule: Schedule, views: Sequence[View], complete: Complete, future_answer: FutureAnswer
) -> Replies:
    """The replies to some views, with a longer answer scored under each cell among them."""
    replying = probe.run(views, complete, deadline_s=schedule.deadline_s, future_answer=future_answer)
    replies, forced = await asyncio.gather(replying, _forced(schedule, views, complete, future_answer))
    return {name: _with_forced(reply, forced.get(name)) for name, reply in replies.items()}


async def _waiting_stage(
    schedule: Schedule, views: Sequence[View], complete: Complete, future_answer: FutureAnswer
) -> Replies:
    """The replies to some views, of which the cells wait for the answer."""
    cells = [view for view in views if view.name in _SCORED]
    others = [view for view in views if view.name not in _SCORED]
    replying = probe.run(others, complete, deadline_s=schedule.deadline_s, future_answer=future_answer)
    waiting = _of_known_answer(schedule, cells, complete, future_answer)
    at_once, later = await asyncio.gather(replying, waiting)
    replies = {**at_once, **later}
    return {view.name: replies[view.name] for view in views if view.name in replies}


async def _of_known_answer(
    schedule: Schedule, cells: Sequence[View], complete: Complete, future_answer: FutureAnswer
) -> Replies:
    """The replies to cells that are asked when the answer is complete: a longer one is scored under them.
    Those that fail at that are asked for words of their own within what is left of the deadline. None where
    they could not be compared with the answer.
    """
    answer = await asyncio.shield(future_answer)
    if answer is None or answer.skip or answer.reasoning:
        return {}
    began = time.monotonic()
    forced = await _forced(schedule, cells, complete, future_answer)
    scored = {name: with_first_word(reply) for name, reply in forced.items() if isinstance(reply, Reply)}
    left = [view for view in cells if view.name not in scored]
    left_s = schedule.deadline_s - (time.monotonic() - began)
    if not left or left_s <= 0.0:
        return {**forced, **scored}
    return {**scored, **await probe.run(left, complete, deadline_s=left_s)}


async def _forced(
    schedule: Schedule, views: Sequence[View], complete: Complete, future_answer: FutureAnswer
) -> Replies:
    """The answer as each cell scores it; empty for an answer of one token or of too many, and where the
    engine scores none.
    """
    if schedule.method != TEACHER_FORCED:
        return {}
    answer = await asyncio.shield(
        future_answer
    )  # others wait for it too: cancelling this task must not cancel it
    is_scored = answer and not answer.skip and not answer.reasoning  # with reasoning: `like_views.ask`
    size = len(answer_positions(answer)) if answer and is_scored else 0
    if answer is None or not 1 < size <= schedule.max_forced_tokens:
        return {}
    text, top = answer_text(answer), schedule.forced_logprobs
    scoring = [view for view in views if view.name in _SCORED]
    rows = size if schedule.last_rows else None
    cells = [View(view.name, forced_body(view.body, text, top, rows)) for view in scoring]
    read = partial(forced_reply, answer=answer)
    return await probe.run(cells, complete, deadline_s=schedule.deadline_s, read=read)


def _with_forced(reply: Reply | Failure, forced: Reply | Failure | None) -> Reply | Failure:
    """A view's reply with the answer as the view scores it, and with the cost of both calls."""
    if not isinstance(reply, Reply) or not isinstance(forced, Reply):
        return reply
    return replace(probe.with_cost_of(reply, forced), forced=forced.forced)
