"""What a task draws from: a split's things, styles and wordings, by one seeded generator."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from PIL import Image

from modint_guard.data.item import Item
from modint_training.picturebook import draw
from modint_training.picturebook import wordings as words
from modint_training.picturebook.things import HELD_OUT, THINGS, TRAINED, Thing, unlike
from modint_training.picturebook.wordings import Wordings, say

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Unseen:
    """What of an item no training has seen."""

    wording: bool = False  # of questions
    captions: bool = False  # of captions, true and lying
    style: bool = False  # of drawing
    things: bool = False

    def __str__(self) -> str:
        """The names of what is unseen, "trained" if there is none."""
        parts = [name for name, value in vars(self).items() if value]
        return "+".join(parts) or "trained"


@dataclass(frozen=True)
class Desk:
    """Draws things, pictures and wordings for one item. `shown` settles the main thing and its picture."""

    id: str
    rng: random.Random
    unseen: Unseen = Unseen()
    shown: tuple[Thing, Image.Image] | None = None

    def thing(self, among: Iterable[Thing] | None = None) -> Thing:
        """The thing that an item is about; with `among` one of these, if what is shown allows it."""
        if self.shown:
            return self.shown[0]
        if among is None:
            return self.rng.choice(HELD_OUT if self.unseen.things else TRAINED)
        return self.rng.choice([thing for thing in among if thing.held_out == self.unseen.things])

    def other(self, *things: Thing, among: Iterable[Thing] | None = None) -> Thing:
        """Another thing, which nobody mixes up with `things`; mostly of the first one's category."""
        others = list(among or (THINGS if self.unseen.things else TRAINED))
        for thing in things:
            others = unlike(thing, others)
        near = [other for other in others if other.category == things[0].category]
        return self.rng.choice(near if len(near) > 2 and self.rng.random() < 0.6 else others)

    def others(self, thing: Thing, count: int) -> list[Thing]:
        """`count` things besides, no two of which are mixed up."""
        chosen = [thing]
        while len(chosen) <= count:
            chosen.append(self.other(*chosen))
        return chosen[1:]

    def picture(self, thing: Thing) -> Image.Image:
        """A picture of the thing: the one that is shown, if it is of that."""
        if self.shown and self.shown[0] == thing:
            return self.shown[1]
        return draw.picture(thing, self.rng, style=self.style(thing))

    def style(self, thing: Thing) -> str:
        """A style for a picture of the thing."""
        return draw.style_for(thing, self.rng, held_out=self.unseen.style)

    def wording(self, ways: Wordings) -> str:
        """A way to ask."""
        return self.rng.choice(ways.of(held_out=self.unseen.wording))

    def caption(self, thing: Thing) -> str:
        """A caption that names the thing."""
        return say(self.rng.choice(words.CAPTIONS.of(held_out=self.unseen.captions)), thing)

    def people(self) -> tuple[str, str]:
        """Two people's names."""
        held_out = words.PEOPLE_HELD_OUT if self.unseen.wording else words.PEOPLE
        first, second = self.rng.sample(held_out, 2)
        return first, second

    def item(self, **fields: Any) -> Item:
        """An item with this desk's id. `held_out_wording` is that of its question."""
        return Item(id=self.id, held_out_wording=self.unseen.wording, **fields)


def capital(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def rejected(answer: Thing, *others: Thing) -> tuple[str, ...]:
    """Names that a reply which means `answer` does not use: those of `others`, and longer names that hold one
    of its own ("teddy bear" beside "bear")."""
    accepted = {name.casefold() for name in answer.names}
    named = (name for other in others for name in other.names if name.casefold() not in accepted)
    return tuple(dict.fromkeys((*named, *_holding(answer))))


@cache
def _holding(answer: Thing) -> tuple[str, ...]:
    accepted = {name.casefold() for name in answer.names}
    others = [name for thing in THINGS if thing != answer for name in thing.names]
    return tuple(
        name
        for name in others
        if name.casefold() not in accepted
        and any(f" {short} " in f" {name.casefold()} " for short in accepted)
    )


def names_of_number(value: int) -> tuple[str, ...]:
    """A number in figures and in words."""
    return (str(value), *words.NUMBER_WORDS[value : value + 1])


def two(template: str, a: Thing, b: Thing, **more: object) -> str:
    """A template about two things with its slots filled, begun with a capital letter unless it is terse."""
    slots = {"a": a, "b": b}
    filled: dict[str, object] = dict(more)
    for letter, thing in slots.items():
        filled |= {
            letter: thing.a,
            letter.upper(): capital(thing.a),
            f"n_{letter}": thing.name,
            f"the_{letter}": thing.the,
            f"The_{letter}": capital(thing.the),
            f"is_{letter}": thing.be,
            f"was_{letter}": "were" if thing.be == "are" else "was",
            f"belongs_{letter}": "belong" if thing.be == "are" else "belongs",
            f"costs_{letter}": "cost" if thing.be == "are" else "costs",
        }
    return template.format(**filled)


def listed(things: Sequence[Thing], last: str, *, bare: bool = False) -> str:
    """Things in a sentence: "a fox, a drum or honey"; `bare` leaves the articles out."""
    return words.joined([thing.name if bare else thing.a for thing in things], last)


def together(things: Sequence[Thing]) -> Thing:
    """Several things as captions speak of one: "a fox and honey"."""
    return Thing(listed(things, "and"), things[0].category, "many", (), "")
