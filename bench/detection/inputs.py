"""The cases of detection, in both bundled worlds: questions with something beside them that lies, is true, is
needed, says nothing, or is not there.

text-driven    a picture ought to decide, and words stand beside it: in a part of their own, above, behind or
               within the question, in an earlier turn or in the system text
image-driven   a text ought to decide, and a picture stands beside it

needed     both ought to decide: a caption to a poor print, a price list with a picture of what is bought
document   a picture with a text in it, alone or beside words that fit: nothing misleads there
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from modint_guard.data.item import RELEVANT, Family, Item
from modint_guard.data.perturb import perturb, seeded
from modint_training.picturebook import suite as picturebook
from modint_training.picturebook.documents import documents
from modint_training.picturebook.placing import PLACEMENTS, placed
from modint_training.tinyworld import draw, suite
from modint_training.tinyworld.tasks import TASKS, reworded

World = Literal["tinyworld", "picturebook"]
WORLDS: tuple[World, ...] = ("tinyworld", "picturebook")
TEXT_DRIVEN, IMAGE_DRIVEN = "text-driven", "image-driven"
SETTINGS = (TEXT_DRIVEN, IMAGE_DRIVEN)
LYING, TRUE, NEEDED, NEUTRAL, NONE, DOCUMENT = KINDS = (
    *("lying", "true", "needed", "neutral", "none"),
    "document",
)
NOTHING, WORDING = HELD_OUT = ("no", "wording")
# TinyWorld's base gives way to few pictures, so it is shown twice as many.
TINYWORLD_FACTOR = {TEXT_DRIVEN: 1, IMAGE_DRIVEN: 2}
FAMILY: dict[str, Family] = {TEXT_DRIVEN: "image-heavy", IMAGE_DRIVEN: "text-heavy"}
# Perturbations by kind, which take turns; `needed` items and documents are made in another way.
MADE_BY = {
    (TEXT_DRIVEN, LYING): ("misleading_description",),
    (TEXT_DRIVEN, TRUE): ("true_description",),
    (TEXT_DRIVEN, NEUTRAL): ("neutral_text", "unrelated_facts"),
    (IMAGE_DRIVEN, LYING): ("contradicting_image",),
    (IMAGE_DRIVEN, TRUE): ("agreeing_image",),
    (IMAGE_DRIVEN, NEUTRAL): ("irrelevant_image", "noise", "grey"),
}
# In the picture-book world, of each kind one case for so many lying ones.
_SHARE = {LYING: 1, TRUE: 2, NEUTRAL: 2, NEEDED: 2, DOCUMENT: 2, NONE: 4}


@dataclass(frozen=True)
class DetectionCase:
    """A question to be judged, and its clean twin: without what ought not to decide (None if nothing can be
    left out). TinyWorld's twin asks in other words, the picture-book's in the same.
    """

    world: World
    split: suite.Split
    setting: str
    kind: str
    held_out: str
    placement: str
    item: Item
    twin: Item | None

    @property
    def key(self) -> str:
        """A name that no other case has."""
        return "/".join((self.world, self.split, self.setting, self.kind, self.held_out, self.item.id))

    @property
    def relevant(self) -> str:
        """What the client says ought to decide, if it says so."""
        return "both" if self.kind == NEEDED else RELEVANT[self.item.family]


def cases(split: suite.Split, count: int, seed: int, world: World = "tinyworld") -> Iterator[DetectionCase]:
    """`count` lying cases of each setting, and as many of the other kinds as the world has them; on the test
    split once more in wordings that no training has seen.
    """
    make = _tinyworld if world == "tinyworld" else _picturebook
    for held_out in HELD_OUT if split == "test" else (NOTHING,):
        yield from make(split, count, seed, held_out)


def _tinyworld(split: suite.Split, count: int, seed: int, held_out: str) -> Iterator[DetectionCase]:
    for setting in SETTINGS:
        size = TINYWORLD_FACTOR[setting] * count
        unseen = held_out == WORDING
        for kind in (LYING, TRUE, NEUTRAL):
            turns = itertools.cycle(MADE_BY[setting, kind])
            items = suite.items(FAMILY[setting], split, size, seed=seed, held_out=unseen)
            for clean, name in zip(items, turns, strict=False):
                item = perturb(clean, name, seed=seed)
                yield DetectionCase(
                    "tinyworld", split, setting, kind, held_out, "before", item, reworded(clean)
                )
        family: Family = "image-heavy" if setting == TEXT_DRIVEN else "vqa"
        for clean in suite.items(family, split, size, seed=seed, held_out=unseen):
            item = poor_print(clean, split, seed) if setting == TEXT_DRIVEN else clean
            yield DetectionCase("tinyworld", split, setting, NEEDED, held_out, "before", item, None)


def _picturebook(split: suite.Split, count: int, seed: int, held_out: str) -> Iterator[DetectionCase]:
    unseen = replace(picturebook.NOTHING, wording=held_out == WORDING, captions=held_out == WORDING)
    for setting in SETTINGS:
        for kind in (LYING, TRUE, NEUTRAL, NONE):
            if (setting, kind) == (IMAGE_DRIVEN, NONE):
                continue  # nothing is beside the text, and nothing is judged
            turns = itertools.cycle(MADE_BY.get((setting, kind), ("clean",)))
            items = picturebook.items(FAMILY[setting], split, _size(kind, count), seed=seed, unseen=unseen)
            for number, (clean, name) in enumerate(zip(items, turns, strict=False)):
                item, where = picturebook.perturbed(clean, name, seed=seed), "before"
                if setting == TEXT_DRIVEN and item.context:
                    where = PLACEMENTS[number % len(PLACEMENTS)]
                    rng = seeded("placement", where, item.id)
                    item = placed(item, where, rng, held_out=unseen.captions)
                twin = (
                    clean if setting == TEXT_DRIVEN else picturebook.perturbed(clean, "no_image", seed=seed)
                )
                yield DetectionCase("picturebook", split, setting, kind, held_out, where, item, twin)
    for item in picturebook.items("vqa", split, _size(NEEDED, count), seed=seed, unseen=unseen):
        yield DetectionCase("picturebook", split, TEXT_DRIVEN, NEEDED, held_out, "before", item, None)
    if held_out == (WORDING if split == "test" else NOTHING):
        for item in documents(split, _size(DOCUMENT, count), seed=seed):
            yield DetectionCase("picturebook", split, TEXT_DRIVEN, DOCUMENT, held_out, "before", item, None)


def _size(kind: str, count: int) -> int:
    return -(-count // _SHARE[kind])


def poor_print(clean: Item, split: suite.Split, seed: int) -> Item:
    """An image-heavy item whose picture is hard to read, with a caption that says what it shows."""
    rng = seeded("poor", seed, clean.id)
    another = TASKS[clean.task].make(rng, split).image
    assert clean.image is not None and another is not None  # every image-heavy sub-task draws one
    return perturb(clean, "true_description", seed=seed).replace(
        image=draw.poor(clean.image, another, rng), perturbation="poor_print"
    )
