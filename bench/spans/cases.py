"""The cases of spans: a picture ought to decide, and a caption beside it lies about one thing, or does not.

word          one thing, named in a few words
sentence      the same in a sentence
detail        a sentence; the caption names the thing rightly, and the lie is a colour that the picture lacks
record        a JSON record of three or four fields, forced by a schema: the caption says rightly who took the
              picture and where, perhaps also when, and lies about the thing
scene         a sentence about two or three things in one picture; the lie names another one for one of them
scene record  the same as JSON with a field for each thing and one for their number

Captions come in the words that the model was trained on, and in words kept out of its training. A true
caption of a detail has the same words, said of something else.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from PIL import Image

from modint_guard.data.item import Item, reply_for
from modint_guard.data.perturb import perturb, seeded
from modint_guard.types import JSON
from modint_training.picturebook import suite as picturebook
from modint_training.picturebook import wordings as words
from modint_training.picturebook.desk import Split, Unseen
from modint_training.picturebook.things import NAMED
from modint_training.picturebook.wordings import say
from modint_training.tinyworld import suite as tinyworld

World = Literal["picturebook", "tinyworld"]
LYING, TRUE = "lying", "true"
KINDS = {LYING: "misleading_description", TRUE: "true_description"}
RECORD_TOKENS = 96
ORDINALS = ("first", "second", "third")
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")
# The hues of a colour on Pillow's circle of 256; a picture has it if so many of its pixels do.
HUES = {"red": (246, 10), "green": (60, 115), "blue": (140, 180), "purple": (186, 225)}
_VIVID, _LEAST_PIXELS = 60, 0.01


@dataclass(frozen=True)
class SpanCase:
    """A question with a caption, and the same without one (`clean`).

    claimed: what people call the thing that a lie names. fields: what the request says besides.
    """

    form: str
    kind: str
    wording: str
    item: Item
    clean: Item
    claimed: tuple[str, ...]
    fields: JSON = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A name that no other case has."""
        return "/".join((self.form, self.kind, self.wording, self.clean.id))


@dataclass(frozen=True)
class _Draft:
    """An item before it has one of its captions, by the kind of case."""

    item: Item
    captions: Mapping[str, str]
    claimed: tuple[str, ...]
    fields: JSON = field(default_factory=dict)


def cases(world: World, count: int, seed: int, split: Split = "test") -> Iterator[SpanCase]:
    """`count` items of each form and wording, each lied to and told the truth."""
    if world == "tinyworld":
        for clean in _tinyworld_items(count, seed, split):
            for kind, name in KINDS.items():
                claimed = (reply_for(clean, clean.wrong),)
                yield SpanCase("word", kind, "trained", perturb(clean, name, seed=seed), clean, claimed)
        return
    for wording, unseen in (("trained", Unseen()), ("held out", Unseen(captions=True))):
        for form, (task, draft_of) in FORMS.items():
            for index in range(count):
                clean = picturebook.item("image-heavy", split, index, seed=seed, unseen=unseen, task=task)
                draft = draft_of(clean, seeded("spans", form, clean.id))
                for kind, caption in draft.captions.items():
                    item = draft.item.replace(context=caption)
                    yield SpanCase(form, kind, wording, item, draft.item, draft.claimed, draft.fields)


def _as_it_is(clean: Item, rng: random.Random) -> _Draft:
    return _Draft(clean, {LYING: clean.lie, TRUE: clean.truth}, names_of_claim(clean))


def names_of_claim(clean: Item) -> tuple[str, ...]:
    """What people call the thing that a lie about this item names, the longest names first."""
    names = NAMED[clean.wrong].names if clean.wrong in NAMED else clean.rejected
    return tuple(sorted(names, key=len, reverse=True))


def with_detail(clean: Item, rng: random.Random) -> _Draft:
    """A description whose caption calls the thing by a colour of which the picture has nothing."""
    assert clean.image is not None
    colour = rng.choice([name for name in HUES if not has_hue(clean.image, name)] or ["purple"])
    thing = NAMED[clean.answer]
    coloured = replace(thing, name=f"{colour} {thing.name}")
    told = rng.choice(words.CAPTIONS.of(held_out="captions" in clean.id))
    captions = {LYING: say(told, coloured), TRUE: _and(say(told, thing), f"It came in a {colour} box.")}
    return _Draft(clean, captions, (colour,))


def has_hue(image: Image.Image, colour: str) -> bool:
    """Whether at least a hundredth of a picture's pixels are vivid ones of this hue."""
    hue, saturation, value = np.moveaxis(
        np.asarray(image.convert("RGB").convert("HSV")), -1, 0
    )  # (H, W) each
    low, high = HUES[colour]
    within = (hue >= low) & (hue <= high) if low < high else (hue >= low) | (hue <= high)
    return bool((within & (saturation >= _VIVID) & (value >= _VIVID)).mean() >= _LEAST_PIXELS)


def as_record(clean: Item, rng: random.Random) -> _Draft:
    """One thing and who took its picture, asked for as a JSON record; captions say the latter rightly."""
    who, spot, day = rng.choice(words.PEOPLE), rng.choice(words.SPOTS), rng.choice(DAYS)
    keys = rng.choice((("thing", "who", "where"), ("thing", "who", "where", "when")))
    when, taken = (" and when", f" on {day}") if "when" in keys else ("", "")
    captions = {
        kind: _and(caption, f"{who} took it in the {spot}{taken}.")
        for kind, caption in ((LYING, clean.lie), (TRUE, clean.truth))
    }
    asked = f"What does the picture show, and who took it where{when}?"
    return _Draft(*_form(clean, asked, captions, dict.fromkeys(keys, _WORDS)))


def as_scene_record(clean: Item, rng: random.Random) -> _Draft:
    """The things of a scene asked for as a JSON record."""
    keys = ORDINALS[: clean.answer.count(" and ") + 1]
    fields: JSON = dict.fromkeys(keys, _WORDS) | {"number": {"type": "integer"}}
    captions = {LYING: clean.lie, TRUE: clean.truth}
    return _Draft(*_form(clean, "What does the picture show?", captions, fields))


def _and(caption: str, sentence: str) -> str:
    return f"{caption.rstrip('.')}. {sentence}"


_WORDS: JSON = {"type": "string", "pattern": "^[A-Za-z ]{1,24}$"}


def _form(
    clean: Item, asked: str, captions: Mapping[str, str], properties: JSON
) -> tuple[Item, Mapping[str, str], tuple[str, ...], JSON]:
    """The fields of a draft that asks for a record of these properties, forced by a schema."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    wanted = json.dumps(
        {key: 0 if value["type"] == "integer" else "..." for key, value in properties.items()}
    )
    question = f"{asked} Fill in this JSON record, one thing in each field: {wanted}"
    form = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema, "strict": True}}
    fields: JSON = {"response_format": form, "max_tokens": RECORD_TOKENS}
    return clean.replace(question=question), captions, names_of_claim(clean), fields


# The task that a form's items are of, and what is made of them.
FORMS: Mapping[str, tuple[str, Callable[[Item, random.Random], _Draft]]] = {
    "word": ("open", _as_it_is),
    "sentence": ("describe", _as_it_is),
    "detail": ("describe", with_detail),
    "record": ("describe", as_record),
    "scene": ("scene", _as_it_is),
    "scene record": ("scene", as_scene_record),
}


SCENES = ("scene", "scene record")


def shows(clean: Item, answer: str) -> bool:
    """Whether an answer names everything that the picture of an item shows."""
    things = [NAMED[name].names for name in clean.answer.split(" and ") if name in NAMED] or [(clean.answer,)]
    return all(re.search(rf"\b(?:{'|'.join(map(re.escape, names))})\b", answer, re.I) for names in things)


def _tinyworld_items(count: int, seed: int, split: Split) -> list[Item]:
    """Items that are answered in a word: forms take turns, so there are others between them."""
    found: list[Item] = []
    index = 0
    while len(found) < count:
        item = tinyworld.item("image-heavy", split, index, seed=seed)
        found += [item] if item.form == "word" else []
        index += 1
    return found
