"""The cases of spans: a picture ought to decide, and a caption beside it lies about one thing, or does not.

word      one thing, named in a few words
caption   a sentence about two or three things in one picture; the lie names another one for one of them
record    the same as JSON with a field for each thing and one for their number, forced by a schema

Captions come in the words that the model was trained on, and in words kept out of its training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from modint_guard.data.item import Item, reply_for
from modint_guard.data.perturb import perturb
from modint_guard.types import JSON
from modint_training.picturebook import suite as picturebook
from modint_training.picturebook.desk import Unseen
from modint_training.picturebook.things import NAMED
from modint_training.tinyworld import suite as tinyworld

World = Literal["picturebook", "tinyworld"]
LYING, TRUE = "lying", "true"
KINDS = {LYING: "misleading_description", TRUE: "true_description"}
TASKS = {"word": "open", "caption": "scene", "record": "scene"}
RECORD_TOKENS = 96
ORDINALS = ("first", "second", "third")


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


def cases(world: World, count: int, seed: int) -> Iterator[SpanCase]:
    """`count` items of each form and wording, each lied to and told the truth."""
    if world == "tinyworld":
        for clean in _tinyworld_items(count, seed):
            yield from _both("word", "trained", clean, (reply_for(clean, clean.wrong),), {}, seed)
        return
    for wording, unseen in (("trained", Unseen()), ("held out", Unseen(captions=True))):
        for form, task in TASKS.items():
            for index in range(count):
                clean = picturebook.item("image-heavy", "test", index, seed=seed, unseen=unseen, task=task)
                fields: JSON = {}
                if form == "record":
                    clean, fields = as_record(clean)
                yield from _both(form, wording, clean, names_of_claim(clean), fields, seed)


def names_of_claim(clean: Item) -> tuple[str, ...]:
    """What people call the thing that a lie about this item names, the longest names first."""
    names = NAMED[clean.wrong].names if clean.wrong in NAMED else clean.rejected
    return tuple(sorted(names, key=len, reverse=True))


def as_record(scene: Item) -> tuple[Item, JSON]:
    """A scene asked for as a JSON record, and the schema that forces it."""
    keys = ORDINALS[: scene.answer.count(" and ") + 1]
    properties: JSON = {key: {"type": "string"} for key in keys} | {"number": {"type": "integer"}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    wanted = json.dumps(dict.fromkeys(keys, "...") | {"number": 0})
    question = f"What does the picture show? Fill in this JSON record, one thing in each field: {wanted}"
    form = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema, "strict": True}}
    return scene.replace(question=question), {"response_format": form, "max_tokens": RECORD_TOKENS}


def _both(
    form: str, wording: str, clean: Item, claimed: tuple[str, ...], fields: JSON, seed: int
) -> Iterator[SpanCase]:
    for kind, name in KINDS.items():
        yield SpanCase(form, kind, wording, perturb(clean, name, seed=seed), clean, claimed, fields)


def _tinyworld_items(count: int, seed: int) -> list[Item]:
    """Items that are answered in a word: forms take turns, so there are others between them."""
    found: list[Item] = []
    index = 0
    while len(found) < count:
        item = tinyworld.item("image-heavy", "test", index, seed=seed)
        found += [item] if item.form == "word" else []
        index += 1
    return found
