"""The items that ship for the demo: of every kind as many as stated, from the test split, reproducible."""

from bench.demo_items import KINDS, demo_items
from modint_guard.data import read_items
from modint_guard.demo.run import ITEMS
from modint_training.tinyworld import draw


def test_the_demo_asks_sixteen_items_of_each_kind_from_the_test_split() -> None:
    items = demo_items()
    assert len(items) == 96 >= 80
    assert len({item.id for item in items}) == 96
    counted = [(item.family, item.perturbation) for item in items]
    assert [(family, kind, counted.count((family, kind))) for family, kind, _ in KINDS] == list(KINDS)
    test = {index for group in draw.digit_split("test").values() for index in group}
    assert {int(item.source[6:]) for item in items if item.source.startswith("digit:")} <= test
    assert {item.form for item in items} == {"word", "letter"}


def test_the_packaged_items_are_the_ones_that_would_be_written_again() -> None:
    packaged, made = read_items(ITEMS), demo_items()
    assert [item.replace(agreeing=None) for item in packaged] == made
    assert [item.image and item.image.tobytes() for item in packaged] == [
        item.image and item.image.tobytes() for item in made
    ]
