"""Requests that are asked once more like their views: if the model reasons first, or if its answer's form is
forced.

What a model writes between <think> and </think> or the like (`chat.thoughts`), or in its field for reasoning,
is no answer. It is not given to a view either: it repeats what the view leaves out. So, once such an answer
is complete, each cell is asked again with an empty thought as the beginning of its reply, for a word of its
own or, if the engine can score a given answer, for the scores of this one.

A JSON schema or a grammar masks what the model may say, and views are not to be bound by it: they would say
that the model is certain of what it had no choice of. They are asked for the scores of the answer only.

Tool calls of which it is not known how the model wrote them are given as the message that they are, and
scored as the model's template writes them.

The unchanged request is asked in the same way (`UNREASONED`, `UNCONSTRAINED`), because an answer and its
views can only be compared if none of them has reasoned, and none was masked.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from modint_guard.chat.eligibility import continues
from modint_guard.chat.reply import answer_positions
from modint_guard.chat.tool_calls import is_rendered
from modint_guard.probing import probe
from modint_guard.probing.teacher_forcing import (
    answer_text,
    called_body,
    called_reply,
    first_word,
    forced_body,
    forced_reply,
    most_tokens,
)
from modint_guard.probing.views import short_body, unconstrained
from modint_guard.types import (
    CELLS,
    JSON,
    LEFT_OUT,
    TEACHER_FORCED,
    UNCONSTRAINED,
    UNREASONED,
    Complete,
    Failure,
    Plan,
    ProbeOutcome,
    Replies,
    Reply,
    View,
)

_VIEW_TOKENS = 2  # some models begin an answer with a token of white space
_CHARACTERS = 4  # of a token, about
_OPENING = 8  # tokens with which a template may open the turn of a reply otherwise than that of a message


def is_needed(plan: Plan, answer: Reply) -> bool:
    """Whether the request must be asked like its views, for its own answer cannot be compared with theirs."""
    return answer.reasoning or plan.schedule.constrained


def name_of(answer: Reply) -> str:
    """The name of the request that is asked so, among the replies."""
    return UNREASONED if answer.reasoning else UNCONSTRAINED


def can_be_asked(plan: Plan, answer: Reply) -> bool:
    """Whether request and views can be asked so, and be compared."""
    schedule = plan.schedule
    fits = 1 <= _size(answer) <= schedule.max_forced_tokens
    if schedule.constrained and not fits:  # seen before a long answer is read for its values
        return False
    if is_rendered(answer):
        has_form = bool(answer.prompt_tokens)  # else it cannot be told whether the template writes calls
    else:
        has_form = answer.empty_thought is not None or not answer.reasoning
    return has_form and bool(schedule.top_logprobs) and not continues(plan.body)


def _size(answer: Reply) -> int:
    """How many tokens are to be scored: about, if the engine has not told them."""
    if answer.positions:
        return len(answer_positions(answer))
    said = len(answer.text) + sum(len(call.arguments) for call in answer.calls)
    return -(-said // _CHARACTERS)


async def ask(plan: Plan, complete: Complete, answer: Reply, replies: Replies) -> Replies:
    """The replies, those of the cells replaced by answers without reasoning or constraint, and the request's
    own beside them. Raises nothing but CancelledError.
    """
    schedule = plan.schedule
    bodies = {view.name: view.body for view in plan.views if view.name in (*CELLS, *LEFT_OUT)}
    bodies[name_of(answer)] = unconstrained(short_body(plan.body, 1, 0))
    thought, size = (answer.empty_thought or "") if answer.reasoning else "", _size(answer)
    least = 1 if schedule.constrained else 2
    if is_rendered(answer):
        made = {
            name: called_body(body, answer, schedule.forced_logprobs, last_rows=schedule.last_rows)
            for name, body in bodies.items()
        }
        read = partial(called_reply, answer=answer)
        asked = await probe.run(_views(made), complete, deadline_s=schedule.deadline_s, read=read)
        asked = _alike(answer, asked)
    elif schedule.method == TEACHER_FORCED and least <= size <= schedule.max_forced_tokens:
        text = thought + answer_text(answer)
        rows = most_tokens(text) if schedule.last_rows else None
        made = {
            name: forced_body(body, text, schedule.forced_logprobs, rows) for name, body in bodies.items()
        }
        read = partial(forced_reply, answer=answer, by_text=True)
        asked = await probe.run(_views(made), complete, deadline_s=schedule.deadline_s, read=read)
    else:
        made = {
            name: _without_reasoning(body, thought, schedule.top_logprobs) for name, body in bodies.items()
        }
        asked = await probe.run(_views(made), complete, deadline_s=schedule.deadline_s)
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


def _alike(answer: Reply, asked: dict[str, Reply | Failure]) -> dict[str, Reply | Failure]:
    """The replies to calls that were given as a message, without those that found other calls than the
    request did, and without any if it found them before the end of its own prompt: the model's template does
    not write calls then, and they stand in what the client sent.
    """
    request = asked[name_of(answer)]
    if not isinstance(request, Reply) or request.skip:
        return asked
    if request.prompt_tokens - len(request.forced) < answer.prompt_tokens - _OPENING:
        return {**asked, name_of(answer): replace(request, skip="tool_calls", forced=())}
    return {
        name: reply
        if isinstance(reply, Failure) or reply.text == request.text
        else Failure(ProbeOutcome.ERROR, "upstream_error", reply.ms)
        for name, reply in asked.items()
    }


def as_asked(answer: Reply, request: Reply) -> Reply:
    """The answer with the distributions that the request gives it when it is asked like its views.

    request: the reply to it.
    """
    if not request.forced:
        return replace(answer, top=request.top, positions=())
    first = first_word(request.forced)
    asked = replace(answer, token=first.token, top=first.top, positions=request.forced)
    if request.leaves is None:
        return asked
    return replace(asked, text=request.text, start=0, leaves=request.leaves)


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
