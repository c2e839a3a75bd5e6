"""The settings of mitigation and their items, balanced over labels and in two orders of options.

The picture-book's lettered questions hold their options, in any order, and are asked once, as they are drawn.

Besides the families under their perturbations there are `needed` inputs: a caption to a poor print, and the
picture that a text asks about. Both ought to decide there, and an answer from one of them alone is worse.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.detection.inputs import World, poor_print
from modint_guard.data.item import RELEVANT, Family, Item
from modint_guard.data.perturb import held_out
from modint_guard.models import ADAPTER, BASE, picturebook
from modint_training.picturebook import suite as picturebook_suite
from modint_training.tinyworld import suite
from modint_training.tinyworld.conditions import CLEAN_KIND

POOR_PRINT = "poor_print"
AUTO = "auto"
_LYING = ("misleading_description", "contradicting_image")
# The base of a world, and the adapter that `escalate` asks.
PAIR: dict[World, tuple[str, str]] = {
    "tinyworld": (BASE, ADAPTER),
    "picturebook": (picturebook.NAME, picturebook.ADAPTER),
}
Kind = Literal["clean", "lying", "needed", "other"]


@dataclass(frozen=True)
class Setting:
    """A family under a perturbation. `named` is what the client says ought to decide, if it differs from the
    family's own; "auto" says nothing.
    """

    family: Family
    perturbation: str
    held_out_wording: bool = False
    named: str = ""
    world: World = "tinyworld"

    @property
    def name(self) -> str:
        """`family/perturbation`, and behind it what else is special."""
        special = ["held-out wording"] * self.held_out_wording + [f"relevant {self.named}"] * bool(self.named)
        return "/".join([self.family, self.perturbation, *special])

    @property
    def held_out(self) -> str:
        """As `perturb.held_out`."""
        if self.perturbation == POOR_PRINT:
            return "no"
        return held_out(self.perturbation, wording=self.held_out_wording)

    @property
    def relevant(self) -> str:
        """What the client says ought to decide."""
        return self.named or RELEVANT[self.family]

    @property
    def kind(self) -> Kind:
        """The role of the other input in the question."""
        if self.family == "vqa" or self.perturbation == POOR_PRINT:
            return "needed"
        if self.perturbation == CLEAN_KIND[self.family]:
            return "clean"
        return "lying" if self.perturbation in _LYING else "other"

    @property
    def clean(self) -> "Setting":
        """The setting of its clean twins; that of a needed input is itself, since it has none."""
        return self if self.kind == "needed" else replace(self, perturbation=CLEAN_KIND[self.family])

    def items(self, split: suite.Split, count: int, seed: int) -> list[Item]:
        """`count` items, balanced over labels; each lettered one is followed by a copy with its options
        moved. The picture-book's are as drawn."""
        if self.world == "picturebook":
            return self.drawn(split, count, seed)
        pool = suite.items(self.family, split, 4 * count, seed=seed, held_out=self.held_out_wording)
        return self.perturbed(
            [each for item in balanced(pool, count) for each in orders_of(item)], split, seed
        )

    def drawn(self, split: suite.Split, count: int, seed: int) -> list[Item]:
        """`count` items as the suite draws them, not balanced."""
        items = picturebook_suite.items if self.world == "picturebook" else suite.items
        clean = items(self.family, split, count, seed=seed, held_out=self.held_out_wording)
        return self.perturbed(clean, split, seed)

    def perturbed(self, clean: Sequence[Item], split: suite.Split, seed: int) -> list[Item]:
        """Clean items of the family under this setting's perturbation."""
        if self.world == "picturebook":
            if self.perturbation == POOR_PRINT:
                return [picturebook_suite.poor_print(item, seed=seed) for item in clean]
            return [picturebook_suite.perturbed(item, self.perturbation, seed=seed) for item in clean]
        if self.perturbation == POOR_PRINT:
            return [poor_print(item, split, seed) for item in clean]
        return [suite.perturbed(item, self.perturbation, seed=seed) for item in clean]


SETTINGS = (
    Setting("image-heavy", "clean"),
    Setting("image-heavy", "misleading_description"),
    Setting("image-heavy", "unrelated_facts"),
    Setting("image-heavy", "ocr_noise"),
    Setting("image-heavy", "true_description"),
    Setting("image-heavy", POOR_PRINT, named="both"),
    Setting("image-heavy", POOR_PRINT, named=AUTO),
    Setting("image-heavy", "clean", held_out_wording=True),
    Setting("image-heavy", "misleading_description", held_out_wording=True),
    Setting("text-heavy", "no_image"),
    Setting("text-heavy", "contradicting_image"),
    Setting("text-heavy", "irrelevant_image"),
    Setting("text-heavy", "screenshot"),
    Setting("text-heavy", "agreeing_image"),
    Setting("text-heavy", "no_image", held_out_wording=True),
    Setting("text-heavy", "contradicting_image", held_out_wording=True),
    Setting("vqa", "clean"),
    Setting("vqa", "clean", named=AUTO),
)
FITTED_ON = tuple(each for each in SETTINGS if each.held_out == "no" and each.named != AUTO)


def in_world(world: World, settings: Sequence[Setting]) -> list[Setting]:
    """The same settings with the items of a world."""
    return [replace(each, world=world) for each in settings]


def balanced(pool: Iterable[Item], count: int) -> list[Item]:
    """`count` items, taken in turn from each sub-task, form and label. The options of lettered items are
    moved so that the letter of the true answer goes round.
    """
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in pool:
        groups.setdefault((item.task, item.form, item.answer), []).append(item)
    taken: list[Item] = []
    for place in range(max(map(len, groups.values()))):
        taken += [group[place] for group in groups.values() if place < len(group)]
    lettered = 0
    items: list[Item] = []
    for item in taken[:count]:
        if item.form == "letter":
            item = moved(item, item.choices.index(item.answer) - lettered)
            lettered += 1
        items.append(item)
    return items


def orders_of(item: Item) -> tuple[Item, ...]:
    """A lettered item in two orders of its options; any other item unchanged."""
    if item.form != "letter":
        return (item,)
    return item, moved(item, -1).replace(id=f"{item.id}-moved")


def moved(item: Item, steps: int) -> Item:
    """The item with its options rotated by `steps` places."""
    steps %= len(item.choices)
    return item.replace(choices=item.choices[steps:] + item.choices[:steps])
