"""What detection is judged on: questions with lying, true, needed and neutral inputs beside them.

text-driven    a picture ought to decide, and a caption stands beside it
image-driven   a text ought to decide, and a picture stands beside it

needed   the other input is part of the question: a caption to a poor print, a picture that the text asks
         about. Both decide then, and to flag a right answer is a false alarm.

A model gives way to a picture more rarely than to a caption, and in some sub-tasks hardly ever. So that there
is something to detect, image-driven cells hold more cases, and a first look at other validation items
(`pilot`) says of which sub-tasks only every third is asked: `thinned`, alike for all kinds and both splits.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from modint_guard.data.item import RELEVANT, Family, Item
from modint_guard.data.perturb import perturb, seeded
from modint_training.tinyworld import draw, suite
from modint_training.tinyworld.tasks import TASKS, reworded

TEXT_DRIVEN, IMAGE_DRIVEN = "text-driven", "image-driven"
SETTINGS = (TEXT_DRIVEN, IMAGE_DRIVEN)
LYING, TRUE, NEEDED, NEUTRAL = KINDS = ("lying", "true", "needed", "neutral")
HELD_OUT = ("no", "wording", "perturbation")
TIMES = {TEXT_DRIVEN: 1, IMAGE_DRIVEN: 2}  # as many cases a cell
THINNED = 3  # one in so many is asked of a sub-task that hardly gives way
GIVES_WAY = 0.1  # of the answers to a lying picture, wrong: from here on a sub-task is asked in full
PILOT_SEED = 1000  # apart: no item of the pilot is among the cases
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


def cases(
    split: suite.Split, count: int, seed: int, *, thinned: frozenset[str] = frozenset()
) -> Iterator[Case]:
    """`count` cases of each kind where a picture ought to decide, TIMES as many where a text ought to; on the
    test split in held-out wordings as well, and under the held-out perturbations. No other split has anything
    held out.
    """
    wordings = ("no", "wording") if split == "test" else ("no",)
    for setting in SETTINGS:
        drawn = Drawn(split, setting, TIMES[setting] * count, seed, thinned)
        for held_out in wordings:
            for kind in KINDS:
                yield from drawn.needed(held_out) if kind == NEEDED else drawn.disturbed(kind, held_out, SEEN)
        if split == "test":
            yield from drawn.disturbed(NEUTRAL, "perturbation", UNSEEN)


def pilot(count: int, seed: int) -> list[Item]:
    """Validation items of their own under lying pictures, `count` of each sub-task."""
    size = count * len(suite.tasks_of("text-heavy"))
    made = suite.items("text-heavy", "validation", size, seed=seed + PILOT_SEED)
    return [perturb(item, "contradicting_image", seed=seed) for item in made]


def hardly_giving_way(wrong: Mapping[str, Sequence[bool]]) -> frozenset[str]:
    """The sub-tasks with too few wrong answers in the pilot; none where all have too few."""
    rare = {task for task, each in wrong.items() if sum(each) < GIVES_WAY * len(each)}
    return frozenset() if rare == set(wrong) else frozenset(rare)


@dataclass(frozen=True)
class Drawn:
    """Where the cases of one split and setting come from."""

    split: suite.Split
    setting: str
    count: int
    seed: int
    thinned: frozenset[str]

    def disturbed(
        self, kind: str, held_out: str, names: Mapping[tuple[str, str], tuple[str, ...]]
    ) -> Iterator[Case]:
        """Under the perturbations of this kind, in turn."""
        turns = itertools.cycle(names[self.setting, kind])
        for clean, name in zip(self._items(FAMILY[self.setting], held_out), turns, strict=False):
            item = perturb(clean, name, seed=self.seed)
            yield Case(self.split, self.setting, kind, held_out, item, reworded(clean))

    def needed(self, held_out: str) -> Iterator[Case]:
        """With an input that the question cannot do without."""
        pictured = self.setting == TEXT_DRIVEN
        for clean in self._items("image-heavy" if pictured else "vqa", held_out):
            item = poor_print(clean, self.split, self.seed) if pictured else clean
            yield Case(self.split, self.setting, NEEDED, held_out, item, None)

    def _items(self, family: Family, held_out: str) -> Iterator[Item]:
        """Sub-tasks and forms in turn, those that are thinned every third time."""
        tasks = suite.tasks_of(family)
        turns = (divmod(index, len(tasks)) for index in itertools.count())
        asked = (
            turn * len(tasks) + place
            for turn, place in turns
            if tasks[place].name not in self.thinned or turn % THINNED == 0
        )
        worded = held_out == "wording"
        for index in itertools.islice(asked, self.count):
            yield suite.item(family, self.split, index, seed=self.seed, held_out=worded)


def poor_print(clean: Item, split: suite.Split, seed: int) -> Item:
    """An image-heavy item whose picture can hardly be read, under a caption that says what it shows."""
    rng = seeded("poor", seed, clean.id)
    another = TASKS[clean.task].make(rng, split).image
    assert clean.image is not None and another is not None  # every image-heavy sub-task draws one
    return perturb(clean, "true_description", seed=seed).replace(
        image=draw.poor(clean.image, another, rng), perturbation="poor_print"
    )
