"""Our own items on disk: what is written comes back, and a bad line is named with its file and number."""

import json
from pathlib import Path
from typing import Any

import pytest

from modint_guard.data import ITEMS, read_items, write_items
from modint_guard.data.item import Turn
from modint_guard.errors import DataError
from tests.core.items import DIGIT, LETTERED, SUM

RECORD: dict[str, Any] = {
    "id": "sum-0",
    "family": "text-heavy",
    "task": "arithmetic",
    "form": "word",
    "question": "What is 1 plus 2?",
    "choices": ["3", "7"],
    "answer": "3",
    "wrong": "7",
}


def folder_with(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / ITEMS).write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path


def test_items_come_back_as_they_were_written(tmp_path: Path) -> None:
    items = [
        DIGIT.replace(context="Légende: “7”\u2028", perturbation="misleading_description"),
        LETTERED.replace(held_out_wording=True),
        SUM,
    ]
    write_items(items, tmp_path / "new" / "set")
    found = read_items(tmp_path / "new" / "set")
    assert found == items
    assert [item.image and item.image.tobytes() for item in found] == [
        item.image and item.image.tobytes() for item in items
    ]
    assert [item.agreeing for item in found] == [None] * 3


def test_each_picture_is_a_png_beside_the_lines(tmp_path: Path) -> None:
    write_items([DIGIT, SUM], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digit-0.png", "items.jsonl"]


def test_what_only_some_items_have_comes_back_too(tmp_path: Path) -> None:
    turns = (Turn("user", "Look.", True), Turn("assistant", "A digit."))
    item = DIGIT.replace(
        system="Be brief.", turns=turns, lie="It is a 7.", replies=("a 3", "a 7"), source="x"
    )
    free = SUM.replace(id="free", form="free", choices=(), answer="three", wrong="")
    named = free.replace(id="named", accepted=("3", "three"), rejected=("four",), truth="It is three.")
    unlabelled = SUM.replace(id="open", answer="", wrong="")
    write_items([item, free, named, unlabelled], tmp_path)
    assert read_items(tmp_path) == [item, free, named, unlabelled]


def test_a_record_needs_some_fields_and_the_others_have_defaults(tmp_path: Path) -> None:
    (item,) = read_items(folder_with(tmp_path, json.dumps(RECORD), "", "  "))
    assert item == SUM.replace(claim="{}")


def test_a_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    record = json.dumps({**RECORD, "context": "a\u2028b\x85c"}, ensure_ascii=False)
    (item,) = read_items(folder_with(tmp_path, record))
    assert item.context == "a\u2028b\x85c"


def test_a_folder_without_items_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items.jsonl: there is no such file"):
        read_items(tmp_path / "nowhere")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ITEMS).write_bytes(b"{\xff}")
    with pytest.raises(DataError, match=r"items.jsonl:1: not JSON: .*UTF-8"):
        read_items(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[]", "a row must be an object with named values, not '[]'"),
        ("3", "a row must be an object with named values, not '3'"),
        (json.dumps({key: value for key, value in RECORD.items() if key != "task"}), "has no 'task'"),
        (
            json.dumps({key: value for key, value in RECORD.items() if key != "choices"}),
            "the form 'word' does",
        ),
        (json.dumps({**RECORD, "anser": "3"}), "'anser' is not a field of an item: did you mean 'answer'?"),
        (json.dumps({**RECORD, "choices": 3}), "`choices` must be a list, not '3'"),
        (json.dumps({**RECORD, "choices": [3]}), "`choices` must be a list of texts"),
        (json.dumps({**RECORD, "answer": 3}), "`answer` must be a text, not '3'"),
        (json.dumps({**RECORD, "held_out_wording": 1}), "`held_out_wording` must be true or false"),
        (json.dumps({**RECORD, "turns": [{"who": "me"}]}), "a turn has role, text and has_image"),
        (json.dumps({**RECORD, "answer": "9"}), "must be among the choices"),
        (json.dumps({**RECORD, "wrong": "3"}), "equals the truth"),
        (json.dumps({**RECORD, "family": "text"}), "no family 'text'"),
        (json.dumps({**RECORD, "image": "none.png"}), "the picture 'none.png' is not in"),
        (
            json.dumps({**RECORD, "image": ITEMS}),
            "the picture 'items.jsonl' cannot be used: The data is not a PNG",
        ),
        (json.dumps({**RECORD, "image": 3}), "'3' is not a picture: give a path, a data URL or bytes"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path: Path, line: str, said: str) -> None:
    folder = folder_with(tmp_path, json.dumps({**RECORD, "id": "first"}), "", line)
    with pytest.raises(DataError) as refused:
        read_items(folder)
    assert str(refused.value).startswith(f"{folder / ITEMS}:3: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
