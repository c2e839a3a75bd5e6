"""Where the words beside a picture stand: before the question, in the same text or in one of their own, after
it, inside it, in an earlier turn, or in the system text."""

import random
import re
from typing import Literal

from modint_guard.data.item import Item, Turn
from modint_training.picturebook import wordings as words
from modint_training.picturebook.things import NAMED
from modint_training.picturebook.wordings import say

Placement = Literal["before", "above", "after", "within", "earlier", "system"]
TRAINED_PLACEMENTS: tuple[Placement, ...] = ("before", "after", "within", "earlier")
HELD_OUT_PLACEMENT: Placement = "system"  # no training has a caption there
PLACEMENTS: tuple[Placement, ...] = (*TRAINED_PLACEMENTS, "above", HELD_OUT_PLACEMENT)


def placed(item: Item, where: Placement, rng: random.Random, *, held_out: bool = False) -> Item:
    """The item with its context at another place: a text of its own before the question stays `context`,
    anything else becomes part of the question (above it, after it, within its sentence), turns or system
    text. A model reads `above` as it reads `before`, whose parts its template joins; a guard has to find the
    question. `held_out` takes the wordings kept out."""
    if not item.context or where == "before":
        return item
    caption, bare = item.context, item.replace(context=None)
    if where == "above":
        return bare.replace(question=f"{caption}\n{item.question}")
    if where == "after":
        return bare.replace(question=f"{item.question}\n{caption}")
    if where == "system":
        system = rng.choice(words.SYSTEM.of(held_out=held_out)).format(caption=caption)
        return bare.replace(system=system)
    if where == "earlier":
        message = rng.choice(words.EARLIER.of(held_out=held_out)).format(caption=caption)
        noted = rng.choice(words.NOTED.of(held_out=held_out))
        return bare.replace(turns=(Turn("user", message), Turn("assistant", noted)))
    return bare.replace(question=_within(item, rng, held_out=held_out))


def _within(item: Item, rng: random.Random, *, held_out: bool) -> str:
    """The claim inside the question's sentence, by the thing that the caption names."""
    thing = named_in(item.context or "")
    if thing is None:
        return f"{item.question}\n{item.context}"
    question = item.question
    begun = question if question.startswith(("I ", "I'", "JSON")) else question[:1].lower() + question[1:]
    return say(rng.choice(words.WITHIN.of(held_out=held_out)), NAMED[thing], q="{q}").replace("{q}", begun)


def named_in(caption: str) -> str | None:
    """The thing that a caption names; None if it names none, or several."""
    mentioned = _NAME.findall(re.sub(r"[_#]", " ", caption.casefold()))
    return mentioned[0] if len(mentioned) == 1 else None


_LONGEST_FIRST = sorted(NAMED, key=len, reverse=True)
_NAME = re.compile(rf"\b({'|'.join(map(re.escape, _LONGEST_FIRST))})\b")
