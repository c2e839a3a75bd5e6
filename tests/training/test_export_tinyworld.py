"""`modint-guard export-tinyworld`: TinyWorld as LLaVA JSON that reads back as it was made."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from modint_guard.cli import GROUP, main
from modint_guard.data import problems, read_data
from modint_guard.data.item import FAMILIES, Item
from modint_training.tinyworld import suite

POINTS = [EntryPoint("export-tinyworld", "modint_training.commands:export_tinyworld", GROUP)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["export-tinyworld", *arguments], POINTS)
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def pixels(item: Item) -> list[bytes | None]:
    return [
        None if held is None else held.tobytes() for held in (item.image, item.agreeing, item.contradicting)
    ]


def test_what_is_exported_reads_back_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tiny"
    code, out, _ = run(capsys, "--split", "test", "--count", "24", "--output", str(folder))
    assert (code, out) == (0, f"wrote 72 items to {folder / 'data.json'}\n")
    made = [item for family in FAMILIES for item in suite.items(family, "test", 24)]
    data = read_data(folder)
    assert data.format == "llava"
    assert list(data) == made
    assert [pixels(item) for item in data] == [pixels(item) for item in made]
    assert list(problems(data)) == []


def test_a_family_a_seed_and_the_wordings_can_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--family", "vqa", "--count", "4", "--seed", "3", "--held-out-wordings")
    assert run(capsys, *options, "--output", str(tmp_path))[0] == 0
    assert list(read_data(tmp_path)) == suite.items("vqa", "train", 4, seed=3, held_out=True)


def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = run(capsys, "--output", str(tmp_path))
    assert (code, err) == (2, f"{tmp_path} exists and is not an empty folder: name another with --output\n")
