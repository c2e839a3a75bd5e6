"""The items that `modint-guard demo` asks: of the test split, packaged with the core as JSONL and PNG."""

from pathlib import Path

from modint_guard.data import write_items
from modint_guard.data.item import Family, Item
from modint_guard.demo.run import ITEMS
from modint_training.tinyworld import suite

# family, perturbation, number of items
KINDS: tuple[tuple[Family, str, int], ...] = (
    ("image-heavy", "clean", 16),
    ("image-heavy", "true_description", 16),
    ("image-heavy", "misleading_description", 16),
    ("text-heavy", "contradicting_image", 16),
    ("text-heavy", "irrelevant_image", 16),
    ("vqa", "clean", 16),
)
SEED = 7


def demo_items() -> list[Item]:
    """All sub-tasks of each kind in turn, in word and letter form; the ids name the kind."""
    items = []
    for family, kind, count in KINDS:
        for number, item in enumerate(suite.items(family, "test", count, seed=SEED)):
            items.append(suite.perturbed(item, kind).replace(id=f"{family}-{kind}-{number:02}"))
    return items


def rewrite_demo_items() -> Path:
    """Rewrite the packaged items; returns their folder."""
    write_items(demo_items(), ITEMS)
    return ITEMS
