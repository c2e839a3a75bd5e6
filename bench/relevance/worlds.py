"""Requests of the two bundled worlds, as further material to fit on: the training split, trained wordings.

Captions stand at every place; the test split in held-out wordings serves as a check.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from bench.relevance.requests import LabelledRequest
from modint_guard.data.item import Item
from modint_guard.data.perturb import seeded
from modint_guard.evaluation.runner import request_for
from modint_training.picturebook import suite as picturebook
from modint_training.picturebook.placing import PLACEMENTS, Placement, placed
from modint_training.tinyworld import suite as tinyworld

AUTHOR = "worlds"
COUNT = 60  # of each world and kind
_PLACES = {"before": "part", "above": "before", "after": "after", "within": "inside", "earlier": "turn"}
_STRINGS: tuple[Placement, ...] = ("before", "above", "after")
Split = Literal["train", "validation", "test"]


def world_requests(
    split: Split = "train", count: int = COUNT, *, held_out: bool = False
) -> list[LabelledRequest]:
    """Of each world `count` questions about a picture with captions, true and lying, and `count` about a
    text. The picture-book has four times as many of the former, for its captions stand at six places.
    """
    requests = [
        *_captioned(split, count, held_out=held_out),
        *_texts(split, count, held_out=held_out),
        *_placed(split, 4 * count, held_out=held_out),
    ]
    return [replace(request, id=f"{AUTHOR}-{number}") for number, request in enumerate(requests)]


def _captioned(split: Split, count: int, *, held_out: bool) -> Iterator[LabelledRequest]:
    for index, item in enumerate(tinyworld.items("image-heavy", split, count, held_out=held_out)):
        told = tinyworld.perturbed(item, ("true_description", "misleading_description")[index % 2])
        where = _STRINGS[index % 3]
        if told.context:
            yield _request(placed(told, where, seeded(item.id)), "image", where, told.context)


def _texts(split: Split, count: int, *, held_out: bool) -> Iterator[LabelledRequest]:
    for world in (tinyworld, picturebook):
        for index, item in enumerate(world.items("text-heavy", split, count, held_out=held_out)):
            beside = world.perturbed(item, "agreeing_image")
            where = _STRINGS[index % 2]
            yield _request(placed(beside, where, seeded(item.id)), "text", where, item.context)


def _placed(split: Split, count: int, *, held_out: bool) -> Iterator[LabelledRequest]:
    for index, item in enumerate(picturebook.items("image-heavy", split, count, held_out=held_out)):
        told = picturebook.perturbed(item, ("true_description", "misleading_description")[index // 6 % 2])
        where = PLACEMENTS[index % 6]
        moved = placed(told, where, seeded(item.id), held_out=held_out)
        said = moved.turns[0].text if where == "earlier" and moved.turns else told.context
        yield _request(moved, "image", where, said, _around(item, moved) if where == "within" else None)


def _around(item: Item, moved: Item) -> tuple[str, ...]:
    """What stands around a question in whose sentence a claim was put."""
    asked = item.question[1:]  # its first letter may have become small
    start = moved.question.find(asked)
    if start < 1:
        return ()
    pieces = moved.question[: start - 1].strip(), moved.question[start + len(asked) :].strip()
    return tuple(piece for piece in pieces if len(piece) > len("so, "))


def _request(
    item: Item, relevant: str, where: str, said: str | None, around: tuple[str, ...] | None = None
) -> LabelledRequest:
    body = request_for(item, "m")
    contexts = around if around is not None else (said,) if said else ()
    return LabelledRequest(
        id=f"{item.id}-{where}",
        author=AUTHOR,
        domain="world",
        language="en",
        body={key: value for key, value in body.items() if key != "modint"},
        relevant=relevant,
        contexts=contexts,
        question=item.question,
        placement=_PLACES.get(where, where) if contexts else "none",
    )
