"""Items through a `Complete` callable, some at a time: one scored row each."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from modint_guard.chat.images import png_data_url
from modint_guard.chat.reply import reply_of
from modint_guard.data.item import RELEVANT, Item, Turn, is_right, prompt
from modint_guard.errors import EndpointError
from modint_guard.evaluation.asking import ask_each
from modint_guard.probing import probe
from modint_guard.types import JSON, Complete, Failure, Plan, Replies

FREE_TOKENS = 256  # of an answer in words of its own; a word or a letter takes at most 8


@dataclass(frozen=True)
class Row:
    """What one model answered to one item, and what the guard said of it (None if there is no guard).

    `top`: log-probabilities of the first content token's alternatives, if they were asked for and given.
    """

    item: Item
    model: str
    answer: str
    right: bool
    modint: JSON | None
    top: Mapping[str, float] | None = None

    @property
    def verdict(self) -> str | None:
        """The guard's state: pass, flagged, unscored or skipped."""
        return str(self.modint["verdict"]) if self.modint else None

    @property
    def flagged(self) -> bool:
        """Whether the guard flagged the answer."""
        return self.verdict == "flagged"

    @property
    def neglected(self) -> bool:
        """Whether the guard flagged it because what ought to decide had no influence: no interference."""
        return self.flagged and self.modint is not None and self.modint.get("cause") == "neglect"


def request_for(item: Item, model: str, *, one_string: bool = False, **fields: Any) -> JSON:
    """The OpenAI chat body that asks an item, greedily; further `fields` (`stream`, ...) go in as they are.

    Context and question are two text parts, or one string; `modint.relevant` names what ought to decide.
    """
    return {
        "model": model,
        "messages": _messages(item, one_string=one_string),
        "temperature": 0,
        "max_tokens": FREE_TOKENS if item.form == "free" else 8,
        "modint": {"relevant": RELEVANT[item.family]},
        **fields,
    }


def without_guard(complete: Complete) -> Complete:
    """The same gateway with its guard off: the model's own completions."""

    async def unguarded(body: JSON) -> JSON:
        return await complete({**body, "modint": {"mode": "off"}})

    return unguarded


async def with_views(plan: Plan, body: JSON, complete: Complete, name: str) -> tuple[JSON, Replies]:
    """The completion of `body`, and a reply to every view of the plan. Raises EndpointError as `every_view`
    does."""
    return await asyncio.gather(complete(body), every_view(plan, complete, name))


async def every_view(plan: Plan, complete: Complete, name: str) -> Replies:
    """A reply to every view of the plan. A view has as long as the endpoint gives a call: no user waits for
    it, and a paced one may start late.

    Raises EndpointError, of `name`, if a view fails: what is said of answers must not depend on which of
    their views a busy endpoint let through.
    """
    replies = await probe.run(plan.views, complete, deadline_s=math.inf)
    if failed := [view for view, reply in replies.items() if isinstance(reply, Failure)]:
        raise EndpointError(f"the view {failed[0]} of {name} got no answer: is the engine well?")
    return replies


def _messages(item: Item, *, one_string: bool) -> list[JSON]:
    """System text, earlier turns and the question; the picture stands before the text of its turn."""
    text = (
        [prompt(item)]
        if one_string or not item.context
        else [item.context, prompt(item.replace(context=None))]
    )
    shown = not any(turn.has_image for turn in item.turns)
    system: list[JSON] = [{"role": "system", "content": item.system}] if item.system else []
    before = [{"role": turn.role, "content": _before(item, turn)} for turn in item.turns]
    return [*system, *before, {"role": "user", "content": _content(item, text, shown=shown)}]


def _before(item: Item, turn: Turn) -> str | list[JSON]:
    return _content(item, [turn.text], shown=turn.has_image) if turn.role == "user" else turn.text


def _content(item: Item, texts: Sequence[str], *, shown: bool) -> list[JSON]:
    content: list[JSON] = [{"type": "text", "text": text} for text in texts]
    if shown and item.image is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": png_data_url(item.image)}})
    return content


async def run(
    items: Sequence[Item],
    complete: Complete,
    model: str,
    *,
    concurrency: int = 8,
    done: Callable[[Row], None] = lambda row: None,
    **fields: Any,
) -> list[Row]:
    """Ask every item, at most `concurrency` at a time; rows come back in the items' order. EndpointError ends
    the run. `fields` go into every request."""

    async def one(item: Item) -> Row:
        return row_of(item, model, await complete(request_for(item, model, **fields)))

    jobs = {number: partial(one, item) for number, item in enumerate(items)}
    rows = await ask_each(jobs, concurrency=concurrency, done=lambda _, row: done(row))
    return list(rows.values())


def row_of(item: Item, model: str, completion: JSON) -> Row:
    """Score one completion."""
    answer = completion["choices"][0]["message"]["content"] or ""
    top = reply_of(completion).top if completion["choices"][0].get("logprobs") else None
    return Row(item, model, answer, is_right(item, answer), completion.get("modint"), top)
