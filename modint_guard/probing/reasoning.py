"""Answers of models that reason first: every view answers without reasoning, and so does the request.

What a model writes between <think> and </think> or the like (`chat.thoughts`), or in its field for reasoning,
is no answer. It is not given to a view either: it repeats what the view leaves out. So, once such an answer
is complete, each cell is asked again with an empty thought as the beginning of its reply, for a word of its
own or, if the engine can score a given answer, for the scores of this one. The unchanged request is asked in
the same way (`UNREASONED`), because an answer and its views can only be compared if none of them has
reasoned.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from modint_guard.chat.eligibility import continues
from modint_guard.chat.reply import answer_positions
from modint_guard.probing import probe
from modint_guard.probing.teacher_forcing import answer_text, forced_body, forced_reply
from modint_guard.probing.views import short_body
from modint_guard.types import CELLS, JSON, TEACHER_FORCED, UNREASONED, Complete, Plan, Replies, Reply, View

_VIEW_TOKENS = 2  # some models begin an answer with a token of white space


def can_be_asked(plan: Plan, answer: Reply) -> bool:
    """Whether views of this request can be made to answer without reasoning, and be compared."""
    has_form = answer.empty_thought is not None
    return has_form and bool(plan.schedule.top_logprobs) and not continues(plan.body)


async def ask(plan: Plan, complete: Complete, answer: Reply, replies: Replies) -> Replies:
    """The replies, those of the cells replaced by answers without reasoning, and the request's own beside
    them. Raises nothing but CancelledError.
    """
    bodies = {view.name: view.body for view in plan.views if view.name in CELLS} | {UNREASONED: plan.body}
    thought, size = answer.empty_thought or "", len(answer_positions(answer))
    if plan.schedule.method == TEACHER_FORCED and 1 < size <= plan.schedule.max_forced_tokens:
        text = thought + answer_text(answer)
        made = {name: forced_body(body, text, plan.schedule.forced_logprobs) for name, body in bodies.items()}
        read = partial(forced_reply, answer=answer)
        asked = await probe.run(_views(made), complete, deadline_s=plan.schedule.deadline_s, read=read)
    else:
        made = {
            name: _without_reasoning(body, thought, plan.schedule.top_logprobs)
            for name, body in bodies.items()
        }
        asked = await probe.run(_views(made), complete, deadline_s=plan.schedule.deadline_s)
    spent = {name: reply for name, reply in replies.items() if isinstance(reply, Reply)}
    return {
        **replies,
        **{
            name: probe.with_cost_of(reply, spent[name])
            if isinstance(reply, Reply) and name in spent
            else reply
            for name, reply in asked.items()
        },
    }


def as_unreasoned(answer: Reply, request: Reply) -> Reply:
    """The answer with the distributions that the request gives it without reasoning.

    request: the reply to the unchanged request, `UNREASONED`.
    """
    positions = answer_positions(answer)
    if len(request.forced) != len(positions):
        return replace(answer, top=request.top, positions=())
    scored = tuple(
        replace(each, logprob=forced.logprob, top=forced.top)
        for each, forced in zip(positions, request.forced, strict=True)
    )
    return replace(answer, top=scored[0].top if scored else request.top, positions=scored)


def _views(bodies: dict[str, JSON]) -> list[View]:
    return [View(name, body) for name, body in bodies.items()]


def _without_reasoning(body: JSON, thought: str, top_logprobs: int) -> JSON:
    """A body whose reply goes on behind an empty thought."""
    return {
        **short_body(body, _VIEW_TOKENS, top_logprobs),
        "messages": [*body["messages"], {"role": "assistant", "content": thought}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
