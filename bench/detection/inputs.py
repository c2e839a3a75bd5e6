"""The cases of detection: questions with a lying, true, needed or neutral other input.

text-driven    a picture ought to decide, and the other input is a caption
image-driven   a text ought to decide, and the other input is a picture

needed   the other input is part of the question: a caption to a poor print, a picture that the text asks
         about. Both ought to decide then, and a flag on a right answer is a false alarm.

Models are misled by pictures more rarely than by captions, and in some sub-tasks hardly ever. So that there
is something to detect, there are more image-driven cases, and a pilot on other validation items decides of
which sub-tasks only every third item is asked (`thinned`), for all kinds and both splits alike.
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
FACTOR = {TEXT_DRIVEN: 1, IMAGE_DRIVEN: 2}  # of the number of cases
THINNED = 3  # of a sub-task in which the model is hardly ever misled, one item in so many is asked
MISLED = 0.1  # from this share of wrong answers to lying pictures on, a sub-task is not thinned
PILOT_SEED = 1000  # added to the seed, so that no item of the pilot is among the cases
FAMILY: dict[str, Family] = {TEXT_DRIVEN: "image-heavy", IMAGE_DRIVEN: "text-heavy"}
# Perturbations by kind, which take turns; `needed` items are made in another way.
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
class DetectionCase:
    """A question to be judged, and its clean twin in another wording (None if nothing could be removed)."""

    split: suite.Split
    setting: str
    kind: str
    held_out: str
    item: Item
    twin: Item | None

    @property
    def key(self) -> str:
        """A name that no other case has."""
        return "/".join((self.split, self.setting, self.kind, self.held_out, self.item.id))

    @property
    def relevant(self) -> str:
        """What the client says ought to decide."""
        return "both" if self.kind == NEEDED else RELEVANT[self.item.family]


def cases(
    split: suite.Split, count: int, seed: int, *, thinned: frozenset[str] = frozenset()
) -> Iterator[DetectionCase]:
    """`count` cases of each kind if a picture ought to decide, and FACTOR times as many if a text ought to;
    on the test split also in held-out wordings and under held-out perturbations.
    """
    wordings = ("no", "wording") if split == "test" else ("no",)
    for setting in SETTINGS:
        source = CaseSource(split, setting, FACTOR[setting] * count, seed, thinned)
        for held_out in wordings:
            for kind in KINDS:
                if kind == NEEDED:
                    yield from source.needed(held_out)
                else:
                    yield from source.perturbed(kind, held_out, SEEN)
        if split == "test":
            yield from source.perturbed(NEUTRAL, "perturbation", UNSEEN)


def pilot(count: int, seed: int) -> list[Item]:
    """Validation items under lying pictures, `count` of each sub-task; none is among the cases."""
    size = count * len(suite.tasks_of("text-heavy"))
    items = suite.items("text-heavy", "validation", size, seed=seed + PILOT_SEED)
    return [perturb(item, "contradicting_image", seed=seed) for item in items]


def rarely_misled(wrong: Mapping[str, Sequence[bool]]) -> frozenset[str]:
    """The sub-tasks with too few wrong answers in the pilot; none if all have too few."""
    rare = {task for task, each in wrong.items() if sum(each) < MISLED * len(each)}
    return frozenset() if rare == set(wrong) else frozenset(rare)


@dataclass(frozen=True)
class CaseSource:
    """The source of the cases of one split and setting."""

    split: suite.Split
    setting: str
    count: int
    seed: int
    thinned: frozenset[str]

    def perturbed(
        self, kind: str, held_out: str, names: Mapping[tuple[str, str], tuple[str, ...]]
    ) -> Iterator[DetectionCase]:
        """Cases under the perturbations of this kind, which take turns."""
        turns = itertools.cycle(names[self.setting, kind])
        for clean, name in zip(self._items(FAMILY[self.setting], held_out), turns, strict=False):
            item = perturb(clean, name, seed=self.seed)
            yield DetectionCase(self.split, self.setting, kind, held_out, item, reworded(clean))

    def needed(self, held_out: str) -> Iterator[DetectionCase]:
        """Cases whose question cannot be answered without the other input."""
        pictured = self.setting == TEXT_DRIVEN
        for clean in self._items("image-heavy" if pictured else "vqa", held_out):
            item = poor_print(clean, self.split, self.seed) if pictured else clean
            yield DetectionCase(self.split, self.setting, NEEDED, held_out, item, None)

    def _items(self, family: Family, held_out: str) -> Iterator[Item]:
        """Clean items: sub-tasks and forms take turns, thinned sub-tasks only every third time."""
        tasks = suite.tasks_of(family)
        turns = (divmod(index, len(tasks)) for index in itertools.count())
        indices = (
            turn * len(tasks) + place
            for turn, place in turns
            if tasks[place].name not in self.thinned or turn % THINNED == 0
        )
        for index in itertools.islice(indices, self.count):
            yield suite.item(family, self.split, index, seed=self.seed, held_out=held_out == "wording")


def poor_print(clean: Item, split: suite.Split, seed: int) -> Item:
    """An image-heavy item whose picture is hard to read, with a caption that says what it shows."""
    rng = seeded("poor", seed, clean.id)
    another = TASKS[clean.task].make(rng, split).image
    assert clean.image is not None and another is not None  # every image-heavy sub-task draws one
    return perturb(clean, "true_description", seed=seed).replace(
        image=draw.poor(clean.image, another, rng), perturbation="poor_print"
    )
