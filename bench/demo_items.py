"""The items `modint-guard demo` asks: test split, packaged with the core as JSONL and PNG."""

from modint_guard.data.item import Family, Item
from modint_training.tinyworld import suite

# family, perturbation, how many
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
    """All sub-tasks of each kind in turn, word and letter form; ids tell the kind."""
    chosen = []
    for family, kind, count in KINDS:
        for number, item in enumerate(suite.items(family, "test", count, seed=SEED)):
            chosen.append(suite.perturbed(item, kind).replace(id=f"{family}-{kind}-{number:02}"))
    return chosen
