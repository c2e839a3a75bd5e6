"""The items that ship for the check-up can be made again, and are drawn large enough for real models."""

import numpy as np
import pytest
from PIL import Image

from bench.checkup_items import CAPTIONS, LEGENDS, QUOTED, TEXTS, checkup_items
from bench.checkup_pictures import SIDE
from modint_guard.data import read_items
from modint_guard.data.item import Item
from modint_guard.data.write import PICTURES
from modint_guard.evaluation.checkup import FOLDER


@pytest.fixture(scope="module")
def made() -> list[Item]:
    return checkup_items()


def test_the_packaged_items_are_the_ones_that_would_be_written_again(made: list[Item]) -> None:
    packaged = read_items(FOLDER)
    assert packaged == made
    for old, new in zip(packaged, made, strict=True):
        for name in PICTURES:
            assert is_alike(getattr(old, name), getattr(new, name)), (old.id, name)


def is_alike(packaged: Image.Image | None, made: Image.Image | None) -> bool:
    """Whether two pictures differ by no more than lossy WebP does: four grey levels in the mean."""
    if packaged is None or made is None:
        return packaged is made
    first, second = (np.asarray(each.convert("RGB"), dtype=float) for each in (packaged, made))
    return first.shape == second.shape and float(np.abs(first - second).mean()) < 4


def test_pictures_are_384_pixels_wide_but_for_documents(made: list[Item]) -> None:
    shown = [item.image or item.contradicting for item in made if item.task != "document"]
    assert {image.size for image in shown if image} == {(SIDE, SIDE)} == {(384, 384)}


@pytest.mark.parametrize("kind", ["digit", "shape", "drawing", "thing", "document"])
def test_lies_of_a_kind_are_worded_in_several_ways(kind: str, made: list[Item]) -> None:
    items = [item for item in made if item.task == kind]
    used = {template for item in items for template in (*CAPTIONS, *QUOTED[1:]) if is_worded(item, template)}
    assert len(used) >= 5


def is_worded(item: Item, template: str) -> bool:
    begun, _, ended = template.partition("{}")
    return item.lie.startswith(begun) and item.lie.endswith(ended) and len(template) > 2


def test_the_pictures_of_legends_are_one_in_the_text_or_need_its_caption() -> None:
    assert len(TEXTS) == len(LEGENDS) == 18
    for legend in LEGENDS:
        assert legend.answer in legend.context and all(other in legend.context for other in legend.others)
    assert sum(not legend.others for legend in LEGENDS) == 4
