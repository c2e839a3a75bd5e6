"""What mitigation is judged on: settings, and their items, balanced over labels and in two orders of options.

Besides the families under their perturbations there are `needed` inputs: a caption to a poor print and the
picture that a text asks about. Both decide there, and an answer made from one of them alone is worse.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.detection.inputs import poor_print
from modint_guard.data.item import RELEVANT, Family, Item
from modint_guard.data.perturb import held_out
from modint_training.tinyworld import suite

POOR_PRINT = "poor_print"
AUTO = "auto"
CLEAN: dict[Family, str] = {"image-heavy": "clean", "text-heavy": "no_image", "vqa": "clean"}
_LYING = ("misleading_description", "contradicting_image")
Kind = Literal["clean", "lying", "needed", "other"]


@dataclass(frozen=True)
class Setting:
    """A family under a perturbation. `relevant` is what the client names, where it is not what the family's
    name says; `auto` names nothing.
    """

    family: Family
    perturbation: str
    held_out_wording: bool = False
    named: str = ""

    @property
    def name(self) -> str:
        """`family/perturbation`, and what is special about it."""
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
        """What the other input is to the question."""
        if self.family == "vqa" or self.perturbation == POOR_PRINT:
            return "needed"
        if self.perturbation == CLEAN[self.family]:
            return "clean"
        return "lying" if self.perturbation in _LYING else "other"

    @property
    def clean(self) -> "Setting":
        """The setting of its clean twins; a needed input has none, and is its own."""
        return self if self.kind == "needed" else replace(self, perturbation=CLEAN[self.family])

    def items(self, split: suite.Split, count: int, seed: int) -> list[Item]:
        """`count` items, balanced over labels; each lettered one follows once more, its options moved on."""
        pool = suite.items(self.family, split, 4 * count, seed=seed, held_out=self.held_out_wording)
        return self.disturbed(
            [each for item in balanced(pool, count) for each in orders_of(item)], split, seed
        )

    def drawn(self, split: suite.Split, count: int, seed: int) -> list[Item]:
        """`count` items as the suite draws them."""
        clean = suite.items(self.family, split, count, seed=seed, held_out=self.held_out_wording)
        return self.disturbed(clean, split, seed)

    def disturbed(self, clean: Sequence[Item], split: suite.Split, seed: int) -> list[Item]:
        """Clean items of the family as this setting has them."""
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


def balanced(pool: Iterable[Item], count: int) -> list[Item]:
    """`count` items in turn from each sub-task, form and label; of lettered items the letter of the truth
    goes round, whatever it was.
    """
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in pool:
        groups.setdefault((item.task, item.form, item.answer), []).append(item)
    taken: list[Item] = []
    for place in range(max(map(len, groups.values()))):
        taken += [group[place] for group in groups.values() if place < len(group)]
    lettered = 0
    found: list[Item] = []
    for item in taken[:count]:
        if item.form == "letter":
            item = moved(item, item.choices.index(item.answer) - lettered)
            lettered += 1
        found.append(item)
    return found


def orders_of(item: Item) -> tuple[Item, ...]:
    """A lettered item in two orders of its options; any other as it is."""
    if item.form != "letter":
        return (item,)
    return item, moved(item, -1).replace(id=f"{item.id}-moved")


def moved(item: Item, steps: int) -> Item:
    """The item with its options moved up by so many places, round and round."""
    steps %= len(item.choices)
    return item.replace(choices=item.choices[steps:] + item.choices[:steps])
