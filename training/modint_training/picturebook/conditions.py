"""What tables ask of a model: a family under a perturbation, with something kept out, at a placement."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modint_guard.data.item import FAMILIES, Family, Item
from modint_guard.data.perturb import CLEAN, REGISTRY, applicable, seeded
from modint_guard.evaluation.statistics import cluster_interval
from modint_training.picturebook import suite
from modint_training.picturebook.desk import Split, Unseen
from modint_training.picturebook.placing import HELD_OUT_PLACEMENT, PLACEMENTS, Placement, placed

CAPTIONS = ("true_description", "misleading_description")


@dataclass(frozen=True)
class Condition:
    """One cell of a table. `self_ask` items ask whether the picture is needed instead of for the answer;
    `task` leaves the other sub-tasks out; `poor` makes the picture hard to read, so that a true caption is
    needed."""

    family: Family
    perturbation: str
    unseen: Unseen = suite.NOTHING
    placement: Placement = "before"
    self_ask: bool = False
    task: str | None = None
    poor: bool = False

    @property
    def name(self) -> str:
        """`family/perturbation`, and what is special about it."""
        unseen = [str(self.unseen)] if self.unseen != suite.NOTHING else []
        place = [self.placement] if self.placement != "before" else []
        task = [self.task] if self.task else []
        asked = ["self_ask"] if self.self_ask else []
        poor = ["poor_picture"] if self.poor else []
        return "/".join([self.family, self.perturbation, *poor, *task, *unseen, *place, *asked])

    @property
    def held_out(self) -> str:
        """What of it no training run has seen, joined by "+"; "no" if all was seen."""
        kind = REGISTRY.get(self.perturbation)
        is_captioned = self.perturbation in CAPTIONS
        unseen = [
            name
            for name, value in vars(self.unseen).items()
            if value and (name != "captions" or is_captioned)
        ]
        unseen += ["perturbation"] if kind and kind.role == "held_out" else []
        unseen += ["placement"] if self.placement == HELD_OUT_PLACEMENT else []
        return "+".join(unseen) or "no"

    def items(self, split: Split, count: int, seed: int = 0) -> list[Item]:
        """The first `count` items under this condition."""
        clean = suite.items(self.family, split, count, seed=seed, unseen=self.unseen, task=self.task)
        asked = [self._placed(self._perturbed(item, seed)) for item in clean]
        return [suite.self_ask(item) for item in asked] if self.self_ask else asked

    def _perturbed(self, item: Item, seed: int) -> Item:
        if self.poor:
            return suite.poor_print(item, seed=seed)
        return suite.perturbed(item, self.perturbation, seed=seed)

    def _placed(self, item: Item) -> Item:
        rng = seeded("placement", self.placement, item.id)
        return placed(item, self.placement, rng, held_out=self.unseen.captions)


_WORDING, _CAPTIONS = Unseen(wording=True, captions=True), Unseen(captions=True)
_STYLE, _THINGS = Unseen(style=True, captions=True), Unseen(things=True, captions=True)
_MAIN = (
    Condition("image-heavy", CLEAN),
    Condition("image-heavy", "true_description"),
    Condition("image-heavy", "misleading_description"),
    Condition("text-heavy", "no_image"),
    Condition("text-heavy", "agreeing_image"),
    Condition("text-heavy", "contradicting_image"),
    Condition("vqa", CLEAN),
)
_NEEDED_CAPTION = Condition("image-heavy", CAPTIONS[0], poor=True)
# What the validation split is looked at under while a model trains.
WATCHED = (*_MAIN, _NEEDED_CAPTION)
HELD_OUT_WORDINGS = tuple(replace(condition, unseen=_WORDING) for condition in _MAIN)
HELD_OUT_CAPTIONS = tuple(
    replace(condition, unseen=_CAPTIONS) for condition in _MAIN if condition.perturbation in CAPTIONS
)
HELD_OUT_STYLE = tuple(
    replace(condition, unseen=_STYLE) for condition in _MAIN if condition.perturbation != "no_image"
)
HELD_OUT_THINGS = tuple(replace(condition, unseen=_THINGS) for condition in _MAIN)
PLACED = tuple(
    Condition("image-heavy", caption, _CAPTIONS, placement)
    for placement in PLACEMENTS
    if placement != "before"
    for caption in CAPTIONS
)
SELF_ASKED = tuple(
    replace(condition, self_ask=True)
    for condition in _MAIN
    if condition.perturbation not in ("agreeing_image", CAPTIONS[0])
)

# The figures by which a base is chosen, by what they are called.
BARS = {
    "open": Condition("image-heavy", CLEAN, task="open"),
    "yes or no": Condition("image-heavy", CLEAN, task="yes_no"),
    "text-heavy": Condition("text-heavy", "no_image"),
    "both needed": Condition("vqa", CLEAN),
    "open, held-out style": Condition("image-heavy", CLEAN, _STYLE, task="open"),
    "yes or no, held-out style": Condition("image-heavy", CLEAN, _STYLE, task="yes_no"),
    "true caption": Condition("image-heavy", CAPTIONS[0], _CAPTIONS, task="open"),
    "lying caption": Condition("image-heavy", CAPTIONS[1], _CAPTIONS, task="open"),
    "yes or no, lying caption": Condition("image-heavy", CAPTIONS[1], _CAPTIONS, task="yes_no"),
    "lettered": Condition("image-heavy", CLEAN, task="lettered"),
    "open, held-out things": Condition("image-heavy", CLEAN, _THINGS, task="open"),
    "text beside a contradicting picture": Condition("text-heavy", "contradicting_image"),
}


def every_condition() -> Iterator[Condition]:
    """Every family clean and under every perturbation that fits it; then wordings, captions, style and things
    kept out, captions at other places, and self-asks."""
    for family in FAMILIES:
        if family != "text-heavy":  # whose clean form is the control `no_image`
            yield Condition(family, CLEAN)
        yield from (Condition(family, kind.name) for kind in applicable(family))
    yield from (*HELD_OUT_WORDINGS, *HELD_OUT_CAPTIONS, *HELD_OUT_STYLE, *HELD_OUT_THINGS)
    yield from (*PLACED, *SELF_ASKED)


def breakdown(
    condition: Condition, items: Sequence[Item], right: Sequence[bool], **more: Sequence[bool]
) -> Iterator[dict[str, Any]]:
    """Rows of accuracy with 95 % intervals clustered by thing: all items, each sub-task.

    `more` are further shares of the same items, `name_rate` each.
    """
    for task in ("all", *dict.fromkeys(item.task for item in items)):
        chosen = [index for index, item in enumerate(items) if task in ("all", item.task)]
        values = [float(right[index]) for index in chosen]
        low, high = cluster_interval(values, [items[index].source for index in chosen])
        yield {
            "family": condition.family,
            "perturbation": condition.perturbation + (", poor picture" if condition.poor else ""),
            "held_out": condition.held_out,
            "placement": condition.placement,
            "task": task,
            "n": len(chosen),
            "accuracy": sum(values) / len(values),
            "ci_low": low,
            "ci_high": high,
            **{f"{name}_rate": sum(shares[i] for i in chosen) / len(chosen) for name, shares in more.items()},
        }
