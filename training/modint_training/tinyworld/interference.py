"""What detection is judged on: questions with lying, true, needed and neutral inputs beside them.

text-driven    a picture ought to decide, and a caption stands beside it
image-driven   a text ought to decide, and a picture stands beside it

needed   the other input is part of the question: a caption to a poor print, a picture that the text asks
         about. Both decide then, and to flag a right answer is a false alarm.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from modint_guard.item import RELEVANT, Family, Item
from modint_guard.perturb import perturb, seeded
from modint_training.tinyworld import draw, suite
from modint_training.tinyworld.tasks import TASKS, reworded

TEXT_DRIVEN, IMAGE_DRIVEN = "text-driven", "image-driven"
SETTINGS = (TEXT_DRIVEN, IMAGE_DRIVEN)
LYING, TRUE, NEEDED, NEUTRAL = KINDS = ("lying", "true", "needed", "neutral")
HELD_OUT = ("no", "wording", "perturbation")
FAMILY: dict[str, Family] = {TEXT_DRIVEN: "image-heavy", IMAGE_DRIVEN: "text-heavy"}
# Perturbations by kind, taken in turn; `needed` items are made otherwise.
SEEN = {
    (TEXT_DRIVEN, LYING): ("misleading_description",),
    (TEXT_DRIVEN, TRUE): ("true_description",),
    (TEXT_DRIVEN, NEUTRAL): ("neutral_text", "unrelated_facts"),
    (IMAGE_DRIVEN, LYING): ("contradicting_image",),
    (IMAGE_DRIVEN, TRUE): ("agreeing_image",),
    (IMAGE_DRIVEN, NEUTRAL): ("noise", "black", "grey"),
}
UNSEEN = {
    (TEXT_DRIVEN, NEUTRAL): ("ocr_noise",),
    (IMAGE_DRIVEN, NEUTRAL): ("irrelevant_image", "white", "screenshot"),
}


@dataclass(frozen=True)
class Case:
    """A question to be judged, and its clean twin in other words (None where nothing could be taken away)."""

    split: suite.Split
    setting: str
    kind: str
    held_out: str
    item: Item
    twin: Item | None

    @property
    def key(self) -> str:
        """Unlike any other case's."""
        return "/".join((self.split, self.setting, self.kind, self.held_out, self.item.id))

    @property
    def relevant(self) -> str:
        """What the client says ought to decide."""
        return "both" if self.kind == NEEDED else RELEVANT[self.item.family]


def cases(split: suite.Split, count: int, seed: int) -> Iterator[Case]:
    """`count` cases of each setting and kind; on the test split in held-out wordings as well, and under the
    held-out perturbations. No other split has anything held out.
    """
    wordings = (False, True) if split == "test" else (False,)
    for setting in SETTINGS:
        for held_out in wordings:
            for kind in KINDS:
                yield from _cases(split, setting, kind, count, seed, held_out=held_out)
        if split == "test":
            for (of, kind), names in UNSEEN.items():
                if of == setting:
                    yield from _disturbed(split, setting, kind, count, seed, "perturbation", names)


def _cases(
    split: suite.Split, setting: str, kind: str, count: int, seed: int, *, held_out: bool
) -> Iterator[Case]:
    said = "wording" if held_out else "no"
    if kind != NEEDED:
        yield from _disturbed(split, setting, kind, count, seed, said, SEEN[setting, kind])
        return
    family: Family = "image-heavy" if setting == TEXT_DRIVEN else "vqa"
    for clean in suite.items(family, split, count, seed=seed, held_out=held_out):
        item = poor_print(clean, split, seed) if setting == TEXT_DRIVEN else clean
        yield Case(split, setting, kind, said, item, None)


def _disturbed(
    split: suite.Split, setting: str, kind: str, count: int, seed: int, held_out: str, names: tuple[str, ...]
) -> Iterator[Case]:
    made = suite.items(FAMILY[setting], split, count, seed=seed, held_out=held_out == "wording")
    for index, clean in enumerate(made):
        item = perturb(clean, names[index % len(names)], seed=seed)
        yield Case(split, setting, kind, held_out, item, reworded(clean))


def poor_print(clean: Item, split: suite.Split, seed: int) -> Item:
    """An image-heavy item whose picture can hardly be read, under a caption that says what it shows."""
    rng = seeded("poor", seed, clean.id)
    another = TASKS[clean.task].make(rng, split).image
    assert clean.image is not None and another is not None  # every image-heavy sub-task draws one
    return perturb(clean, "true_description", seed=seed).replace(
        image=draw.poor(clean.image, another, rng), perturbation="poor_print"
    )
