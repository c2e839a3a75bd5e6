"""The items that `modint-guard demo` asks of each world: of the test split, packaged with the core as JSONL
and PNG.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from modint_guard.data import write_items
from modint_guard.data.item import Family, Item
from modint_guard.demo.shows import PICTUREBOOK_ITEMS, TINYWORLD_ITEMS
from modint_training import picturebook as book
from modint_training.picturebook import suite as picturebook
from modint_training.picturebook.documents import documents
from modint_training.tinyworld import suite as tinyworld

# family, perturbation, number of items
TINYWORLD: tuple[tuple[Family, str, int], ...] = (
    ("image-heavy", "clean", 16),
    ("image-heavy", "true_description", 16),
    ("image-heavy", "misleading_description", 16),
    ("text-heavy", "contradicting_image", 16),
    ("text-heavy", "irrelevant_image", 16),
    ("vqa", "clean", 16),
)
# Of the picture-book; then NEEDED and DOCUMENT, which are no perturbations.
PICTUREBOOK: tuple[tuple[Family, str, int], ...] = (
    ("image-heavy", "clean", 13),
    ("image-heavy", "true_description", 13),
    ("image-heavy", "misleading_description", 26),
    ("text-heavy", "contradicting_image", 13),
    ("text-heavy", "irrelevant_image", 13),
)
NEEDED, DOCUMENT = "caption_needed", "document"  # a picture that is hard to read, and one with its text in it
OTHERS = 12  # items of each of these two
SEED = 7
SHEETS_NOTICE = Path(book.__file__).parent / "sheets" / "NOTICE"
NOTICE = """\
Pictures of the demo

`python -m bench demo-items` made them. Pictures of things are drawings of emoji by others, scaled and set on
a light ground, some of them blurred, faded or covered; documents are the project's own, under its licence.
Of the sheets from which the drawings come their own notice says:

"""


def tinyworld_items() -> list[Item]:
    """All sub-tasks of each kind in turn, in word and letter form; the ids name the kind."""
    return [
        tinyworld.perturbed(item, kind).replace(id=f"{family}-{kind}-{number:02}")
        for family, kind, count in TINYWORLD
        for number, item in enumerate(tinyworld.items(family, "test", count, seed=SEED))
    ]


def picturebook_items() -> list[Item]:
    """All sub-tasks of each kind in turn, then captions that are needed, then documents; `perturbation` and
    the ids name the kind."""
    return [*_picturebook_items()]


def _picturebook_items() -> Iterator[Item]:
    for family, kind, count in PICTUREBOOK:
        for number, item in enumerate(picturebook.items(family, "test", count, seed=SEED)):
            yield picturebook.perturbed(item, kind).replace(id=f"{family}-{kind}-{number:02}")
    needed = picturebook.items("vqa", "test", OTHERS, seed=SEED, task="faded")
    for kind, items in ((NEEDED, needed), (DOCUMENT, documents("test", OTHERS, seed=SEED))):
        for number, item in enumerate(items):
            yield item.replace(id=f"{item.family}-{kind}-{number:02}", perturbation=kind)


def rewrite_demo_items() -> Sequence[Path]:
    """Rewrite the packaged items; returns their folders."""
    write_items(tinyworld_items(), TINYWORLD_ITEMS)
    write_items(picturebook_items(), PICTUREBOOK_ITEMS)
    (PICTUREBOOK_ITEMS / "NOTICE").write_text(NOTICE + SHEETS_NOTICE.read_text("utf-8"), "utf-8")
    return TINYWORLD_ITEMS, PICTUREBOOK_ITEMS
