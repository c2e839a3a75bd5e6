"""The items that ship for the demo: of every kind as many as stated, from the test split, reproducible."""

from pathlib import Path

import pytest

from bench.demo_items import (
    DOCUMENT,
    NEEDED,
    NOTICE,
    OTHERS,
    PICTUREBOOK,
    SHEETS_NOTICE,
    TINYWORLD,
    picturebook_items,
    tinyworld_items,
)
from modint_guard.data import read_items
from modint_guard.data.item import Item
from modint_guard.demo.shows import PICTUREBOOK_ITEMS, TINYWORLD_ITEMS
from modint_training.tinyworld import draw

Kinds = list[tuple[str, str, int]]


def counted(items: list[Item]) -> Kinds:
    pairs = [(item.family, item.perturbation) for item in items]
    return [(*pair, pairs.count(pair)) for pair in dict.fromkeys(pairs)]


def test_the_demo_asks_sixteen_items_of_each_kind_from_the_test_split() -> None:
    items = tinyworld_items()
    assert len({item.id for item in items}) == 96 >= 80
    assert counted(items) == list(TINYWORLD)
    test = {index for group in draw.digit_split("test").values() for index in group}
    assert {int(item.source[6:]) for item in items if item.source.startswith("digit:")} <= test
    assert {item.form for item in items} == {"word", "letter"}


def test_the_picture_book_shows_lies_truths_needed_captions_pictures_beside_texts_and_documents() -> None:
    items = picturebook_items()
    assert len({item.id for item in items}) == 102
    others = [("vqa", NEEDED, OTHERS), ("image-heavy", DOCUMENT, OTHERS)]
    assert counted(items) == [*PICTUREBOOK, *others]
    assert {item.form for item in items} == {"word", "letter", "free"}
    assert not any(item.held_out_wording for item in items)


@pytest.mark.parametrize(
    ("folder", "make"), [(TINYWORLD_ITEMS, tinyworld_items), (PICTUREBOOK_ITEMS, picturebook_items)]
)
def test_the_packaged_items_are_the_ones_that_would_be_written_again(folder: Path, make: object) -> None:
    assert callable(make)
    packaged, made = read_items(folder), make()
    alone = {"agreeing": None, "contradicting": None}
    assert [item.replace(**alone) for item in packaged] == [item.replace(**alone) for item in made]
    # A font of another version draws documents otherwise.
    shown = [pair for pair in zip(packaged, made, strict=True) if pair[0].perturbation != DOCUMENT]
    assert [item.image and item.image.tobytes() for item, _ in shown] == [
        item.image and item.image.convert("RGB").tobytes() for _, item in shown
    ]


def test_drawings_of_others_come_with_their_notice() -> None:
    notice = (PICTUREBOOK_ITEMS / "NOTICE").read_text("utf-8")
    assert notice == NOTICE + SHEETS_NOTICE.read_text("utf-8")
