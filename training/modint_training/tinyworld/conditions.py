"""The conditions that tables measure: a family under a perturbation, in trained or held-out wordings, or
self-asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modint_guard.data.item import FAMILIES, Family, Item
from modint_guard.data.perturb import CLEAN, applicable, held_out
from modint_guard.evaluation.statistics import cluster_interval
from modint_training.tinyworld import suite

SELF_ASK = "self_ask"
# The perturbation under which each family has no caption or picture that could disturb it.
CLEAN_KIND: dict[str, str] = {"image-heavy": CLEAN, "text-heavy": "no_image", "vqa": CLEAN}


@dataclass(frozen=True)
class Condition:
    """One condition of a table. If `self_ask`, the items ask whether the picture is needed, instead of their
    own question."""

    family: Family
    perturbation: str
    held_out_wording: bool = False
    self_ask: bool = False

    @property
    def name(self) -> str:
        """`family/perturbation`, and behind it what else is special."""
        special = ["held-out wording"] * self.held_out_wording + [SELF_ASK] * self.self_ask
        return "/".join([self.family, self.perturbation, *special])

    @property
    def held_out(self) -> str:
        """As `perturb.held_out`."""
        return held_out(self.perturbation, wording=self.held_out_wording)

    def items(self, split: suite.Split, count: int, seed: int = 0) -> list[Item]:
        """The first `count` items under this condition."""
        clean = suite.items(self.family, split, count, seed=seed, held_out=self.held_out_wording)
        items = [suite.perturbed(item, self.perturbation, seed=seed) for item in clean]
        return [suite.self_ask(item) for item in items] if self.self_ask else items


# The conditions that are measured on the validation split while a model trains.
WATCHED = (
    Condition("image-heavy", "clean"),
    Condition("image-heavy", "true_description"),
    Condition("image-heavy", "misleading_description"),
    Condition("text-heavy", "no_image"),
    Condition("text-heavy", "agreeing_image"),
    Condition("text-heavy", "contradicting_image"),
    Condition("vqa", "clean"),
)
_VARIED = (
    Condition("image-heavy", "clean"),
    Condition("image-heavy", "misleading_description"),
    Condition("text-heavy", "no_image"),
    Condition("text-heavy", "contradicting_image"),
    Condition("vqa", "clean"),
)
HELD_OUT_WORDINGS = tuple(replace(condition, held_out_wording=True) for condition in _VARIED)
SELF_ASKED = tuple(replace(condition, self_ask=True) for condition in _VARIED)


def every_condition() -> Iterator[Condition]:
    """Every family clean and under every perturbation that fits it, then held-out wordings and self-asked
    items."""
    for family in FAMILIES:
        if CLEAN_KIND[family] == CLEAN:  # otherwise it is one of the perturbations
            yield Condition(family, CLEAN)
        yield from (Condition(family, kind.name) for kind in applicable(family))
    yield from (*HELD_OUT_WORDINGS, *SELF_ASKED)


def breakdown(
    condition: Condition, items: Sequence[Item], right: Sequence[bool], **more: Sequence[bool]
) -> Iterator[dict[str, Any]]:
    """Rows of accuracy with 95 % intervals: for all items, each form and each sub-task.

    `more` holds further flags of the same items; the share of each is added as `NAME_rate`.
    """
    for task, form, chosen in _parts(items):
        values = [float(right[index]) for index in chosen]
        low, high = cluster_interval(values, [items[index].source for index in chosen])
        yield {
            "family": condition.family,
            "perturbation": condition.perturbation,
            "held_out": condition.held_out,
            "task": SELF_ASK if condition.self_ask else task,
            "form": form,
            "n": len(chosen),
            "accuracy": sum(values) / len(values),
            "ci_low": low,
            "ci_high": high,
            **{f"{name}_rate": sum(flags[i] for i in chosen) / len(chosen) for name, flags in more.items()},
        }


def _parts(items: Sequence[Item]) -> Iterator[tuple[str, str, list[int]]]:
    every = range(len(items))
    yield "all", "all", list(every)
    forms = dict.fromkeys(item.form for item in items)
    tasks = dict.fromkeys(item.task for item in items)
    if len(forms) > 1:
        yield from (("all", form, [i for i in every if items[i].form == form]) for form in forms)
    if len(tasks) > 1:
        yield from ((task, "all", [i for i in every if items[i].task == task]) for task in tasks)
