"""Which items a command asks: the first of each family of a data set, or those of a generated world."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from modint_guard.data import write_items
from modint_guard.data.item import Family, Item
from modint_guard.data.options import ReadingOptions
from modint_guard.errors import ConfigError
from modint_guard.evaluation.extensions import WORLDS, WorldSplit
from modint_guard.evaluation.items import OF_A_WORLD, items_of
from tests.core.items import DIGIT, SUM

UNREAD = ReadingOptions()
HERE = EntryPoint("tiny", f"{__name__}:tiny", WORLDS)


def tiny(family: Family, split: WorldSplit, count: int, /, *, seed: int, held_out: bool) -> list[Item]:
    """A world whose items say in their ids what was asked for."""
    item = SUM.replace(held_out_wording=held_out)
    return [item.replace(id=f"{family}/{split}/{seed}/{held_out}/{n}") for n in range(count)]


@pytest.fixture(autouse=True)
def this_module_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


@pytest.fixture
def data(tmp_path: Path) -> str:
    digits = [DIGIT.replace(id=f"digit-{n}") for n in range(4)]
    sums = [SUM.replace(id=f"sum-{n}") for n in range(3)]
    write_items([digits[0].replace(answer="", wrong=""), *digits[1:], *sums], tmp_path)
    return str(tmp_path / "items.jsonl")


def ids(items: list[Item]) -> list[str]:
    return [item.id for item in items]


def test_a_limit_takes_the_first_labelled_items_of_each_family(data: str) -> None:
    chosen = items_of(data, UNREAD, limit=2, seed=0, split="test")
    assert ids(chosen) == ["digit-1", "digit-2", "sum-0", "sum-1"]
    assert len(items_of(data, UNREAD, limit=None, seed=0, split="test")) == 7


def test_if_no_item_has_an_answer_all_are_given_so_that_they_can_be_counted(tmp_path: Path) -> None:
    write_items([DIGIT.replace(id=f"digit-{n}", answer="", wrong="") for n in range(3)], tmp_path)
    assert len(items_of(str(tmp_path / "items.jsonl"), UNREAD, limit=1, seed=0, split="test")) == 3


def test_a_world_gives_each_family_and_as_many_in_held_out_wordings() -> None:
    items = items_of("tiny", UNREAD, limit=1, seed=7, split="validation", worlds=[HERE])
    assert ids(items) == [
        f"{family}/validation/7/{held_out}/0"
        for family in ("image-heavy", "text-heavy", "vqa")
        for held_out in (False, True)
    ]
    assert len(items_of("tiny", UNREAD, limit=None, seed=7, split="test", worlds=[HERE])) == 6 * OF_A_WORLD


def test_a_worlds_split_may_be_named() -> None:
    how = ReadingOptions(split="train")
    (item, *_) = items_of("tiny", how, limit=1, seed=0, split="test", worlds=[HERE])
    assert item.id.startswith("image-heavy/train/")


def test_a_folder_of_a_worlds_name_can_be_named_by_its_path(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(data).parent)
    Path("items.jsonl").rename("tiny")
    how = ReadingOptions(format="items")
    assert len(items_of("./tiny", how, limit=None, seed=0, split="test", worlds=[HERE])) == 7


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            ReadingOptions(family="vqa"),
            "--family says how rows of your own are read, and tiny is a generated",
        ),
        (ReadingOptions(image_root=Path("x")), "--image-root says how rows of your own are read"),
        (ReadingOptions(column=("a=b",)), "--column says how rows of your own are read"),
        (ReadingOptions(number_rows=True), "--number-rows says how rows of your own are read"),
        (ReadingOptions(format="llava"), "--format says how rows of your own are read"),
        (ReadingOptions(split="dev"), "tiny has no split 'dev': name one of train, validation, test"),
    ],
)
def test_what_makes_no_sense_for_a_world_is_refused(how: ReadingOptions, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        items_of("tiny", how, limit=1, seed=0, split="test", worlds=[HERE])


def test_a_world_whose_library_is_not_installed_names_the_extra() -> None:
    point = EntryPoint("tiny", "a_library_nobody_has.worlds:tiny", WORLDS)
    with pytest.raises(ConfigError, match=r"the world tiny needs: pip install 'modint-guard\[train\]'"):
        items_of("tiny", UNREAD, limit=1, seed=0, split="test", worlds=[point])


def test_a_module_of_ours_that_is_missing_is_a_fault_and_no_missing_extra() -> None:
    point = EntryPoint("tiny", "modint_guard.no_such_module:tiny", WORLDS)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        items_of("tiny", UNREAD, limit=1, seed=0, split="test", worlds=[point])
