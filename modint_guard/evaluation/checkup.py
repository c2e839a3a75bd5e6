"""The check-up: some 200 packaged questions, from which one learns what kind of interference a model has.

Digits, shapes, drawings, everyday things and documents are asked clean, and under a true, a lying and an
unrelated text; short texts alone, and beside a contradicting and an irrelevant picture. Questions that need
text and picture are asked once. `python -m bench checkup-items` makes the items. Nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path

from modint_guard.data import ITEMS, first_of_each, read_data
from modint_guard.data.item import Item
from modint_guard.data.naming import names
from modint_guard.data.severity import FULL
from modint_guard.evaluation.variants import Variant, variants_of

NAME = "the check-up"  # of its data, in reports
FOLDER = Path(__file__).parent / "checkup_items"
CONDITIONS = (
    "misleading_description",
    "true_description",
    "unrelated_facts",
    "contradicting_image",
    "irrelevant_image",
)


def checkup_items(limit: int | None = None, *, seed: int = 0) -> list[Item]:
    """Every item as it is asked.

    `task` names its kind, `perturbation` its condition, `family` what ought to decide; `answer` is the truth
    and `wrong` what a lie says. limit: the first items of each family, each under all its conditions. seed:
    of the unrelated texts and the irrelevant pictures.
    """
    return [variant.whole() for variant in checkup_variants(limit, seed=seed)]


def checkup_variants(limit: int | None = None, *, seed: int = 0) -> list[Variant]:
    """The same as variants of items, which a diagnosis asks."""
    packaged = read_data(FOLDER / ITEMS, format="items")
    items = first_of_each(packaged, limit) if limit else list(packaged)
    return variants_of(items, CONDITIONS, [FULL], seed)


def says_lie(item: Item, text: str) -> bool:
    """Whether a reply gives the answer that a lie about the item claims, and not the true one."""
    return names(text, item.rejected, item.accepted)


def uses_text(item: Item, text: str) -> bool:
    """Whether a reply names one of the values in the text of an item that needs text and picture, be it the
    right one or another: a model that takes the text into account at all does.
    """
    return any(names(text, (name,)) for name in (*item.accepted, *item.rejected))
