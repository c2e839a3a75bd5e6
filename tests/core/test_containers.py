"""Files and folders that hold rows: each kind by a real one, cut off and damaged ones by their line."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modint_guard.data import problems, read_data
from modint_guard.data.rows import TextRows
from modint_guard.data.tables import KEPT_GROUPS, NEEDS_PYARROW
from modint_guard.errors import ConfigError, DataError
from tests.core.items import BLUE, RED

SAVED = Path(__file__).parent / "datasets"
MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}]


def lines(folder: Path, *rows: str, name: str = "mine.jsonl") -> Path:
    (folder / name).write_bytes("\n".join(rows).encode())
    return folder / name


def row(number: int) -> str:
    return json.dumps({"id": number, "messages": MESSAGES})


def said(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as refused:
        read_data(path, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- JSON lines


def test_lines_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    path = lines(tmp_path, row(1), "", "  \r", row(2) + "\r", name="mine.json")
    assert [item.id for item in read_data(path)] == ["1", "2"]


def test_a_truncated_line_in_the_middle_is_named_with_its_number(tmp_path: Path) -> None:
    path = lines(tmp_path, row(1), "", row(2)[:-20], row(3))
    assert said(path).startswith(f"{path}:3: not JSON: ")
    data = read_data(path, check=False)
    assert [problem.line for problem in problems(data)] == [3]
    assert [data[0].id, data[2].id] == ["1", "3"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(b"\xef\xbb\xbf" + row(1).encode())
    assert len(read_data(tmp_path / "mine.jsonl")) == 1


def test_a_row_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(row(1).encode() + b'\n{"messages": "\xff"}')
    assert "mine.jsonl:2: not JSON: " in said(tmp_path / "mine.jsonl")


# -- JSON arrays


def test_each_row_of_an_array_knows_its_line(tmp_path: Path) -> None:
    text = json.dumps([{"id": n, "messages": MESSAGES} for n in range(3)], indent=2)
    path = lines(tmp_path, "", text, "", name="mine.json")
    rows = TextRows(path)
    shown = path.read_text().split("\n")
    assert [rows.row(n).line for n in range(3)] == [n + 1 for n, line in enumerate(shown) if line == "  {"]


def test_an_array_may_stand_on_one_line(tmp_path: Path) -> None:
    path = lines(tmp_path, "[" + ",".join(row(n) for n in range(3)) + "]", name="mine.json")
    assert [item.id for item in read_data(path)] == ["0", "1", "2"]


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.recursive(st.text(max_size=8) | st.integers(-9, 9), lambda held: st.lists(held, max_size=3)),
            max_size=3,
        ),
        max_size=5,
    ),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
)
@settings(max_examples=60)
def test_the_rows_of_an_array_are_those_that_json_finds(
    tmp_path_factory: pytest.TempPathFactory, held: list[dict[str, Any]], indent: int | None, plain: bool
) -> None:
    path = tmp_path_factory.mktemp("array") / "mine.json"
    path.write_text(json.dumps(held, indent=indent, ensure_ascii=plain), "utf-8")
    rows = TextRows(path)
    assert [rows.row(n).values for n in range(len(rows))] == held


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"[\n{row(1)},\n{row(2)}", ":3: the array has no end: the file is cut off; write it again"),
        (f"[\n{row(1)},\n" + row(2)[:-30], ":3: "),
        (f'[\n{row(1)},\n{{"id": "cut', ":3: a string that begins here never ends"),
        (f"[\n{row(1)}\n{row(2)}]", ":3: expected an object after a comma, found nothing"),
        (f"[\n{row(1)}, 7,\n{row(2)}]", ":3: expected an object after a comma, found ', 7,'"),
        (f"[\n{row(1)},\n]", ":3: expected the end of the array, found ','"),
        (f"[\n{row(1)}]\n{row(2)}", ":2: more text follows the array: keep one array in a file"),
        (f"[\n{row(1)},\n[1]]", ":3: a row must be an object with named values, not '[1]'"),
        (f'[\n{row(1)},\n{{"id": nil}}]', ":3: not JSON: "),
        ("[1, 2]", ":1: expected the end of the array, found '[1, 2'"),
        ("[]", ": holds no rows"),
        ("", ": the file is empty: give one with at least one row"),
        (" \n ", ": the file is empty: give one with at least one row"),
        ("id,question\n1,What?", ": begins with 'id,question"),
    ],
)
def test_a_damaged_or_empty_file_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = lines(tmp_path, text, name="mine.json")
    assert said(path).startswith(f"{path}{problem}")


# -- Parquet and folders of `datasets`


def test_a_folder_that_datasets_saved_is_read_by_split() -> None:
    data = read_data(SAVED / "saved", split="train")
    assert data.format == "multiple-choice"
    assert [item.id for item in data] == ["a", "b", "c"]
    assert [item.family for item in data] == ["image-heavy", "image-heavy", "text-heavy"]
    assert [item.image and item.image.tobytes() for item in data] == [
        RED.resize((4, 3)).tobytes(),
        BLUE.resize((4, 3)).tobytes(),
        None,
    ]
    assert [item.id for item in read_data(SAVED / "saved" / "test")] == ["b"]


def test_a_folder_with_several_splits_asks_which() -> None:
    assert "saved: holds the splits train, test: say which with --split" in said(SAVED / "saved")
    assert "saved: has no split 'dev': it holds train, test" in said(SAVED / "saved", split="dev")


def test_parquet_that_datasets_wrote_holds_chats_and_pictures() -> None:
    first, second = read_data(SAVED / "chats.parquet")
    assert (first.question, first.answer) == ("What colour?", "Red.")
    assert first.image is not None and first.image.tobytes() == RED.resize((4, 3)).tobytes()
    assert read_data(SAVED / "chats.parquet").sample(0).pictures["image"].size() == (4, 3)
    assert (second.question, second.labelled, second.image) == ("1 + 2?", False, None)


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def asked(number: int, **more: Any) -> dict[str, Any]:
    return {"id": str(number), "question": "What?", "answer": "Red.", **more}


def test_bytes_in_a_table_are_left_there_until_they_are_asked_for(tmp_path: Path) -> None:
    rows = [asked(n, image=b"no picture at all") for n in range(3 * KEPT_GROUPS)]
    data = read_data(parquet(tmp_path / "mine.parquet", rows, row_group_size=1))
    assert [sample.item.answer for sample in data.samples()] == ["Red."] * len(rows)
    with pytest.raises(DataError, match=r"mine.parquet:2: sample '1': the picture image cannot be used"):
        data[1]


def test_row_groups_are_found_in_any_order(tmp_path: Path) -> None:
    data = read_data(parquet(tmp_path / "mine.parquet", [asked(n) for n in range(7)], row_group_size=3))
    assert [data[n].id for n in (6, 0, 3, 2, 5, 1, 4)] == list("6032514")


def test_a_path_in_a_table_is_a_file_beside_it(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    rows = [asked(1, image={"bytes": None, "path": "red.png"}), asked(2, image=None)]
    pa = pytest.importorskip("pyarrow")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            **{name: [row[name] for row in rows] for name in ("id", "question", "answer")},
            "image": pa.array([row["image"] for row in rows], kind),
        }
    )
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "mine.parquet")
    first, second = read_data(tmp_path / "mine.parquet")
    assert first.image is not None and second.image is None


def test_columns_without_a_value_are_as_good_as_absent(tmp_path: Path) -> None:
    rows = [
        asked(1, choices=["Red.", "Blue."], modint={"wrong": "Blue.", "family": "text-heavy"}),
        asked(2, choices=None, modint={"wrong": None, "family": "text-heavy"}),
    ]
    first, second = read_data(parquet(tmp_path / "mine.parquet", rows))
    assert (first.wrong, second.wrong, second.form) == ("Blue.", "", "free")


def test_a_folder_of_parquet_files_is_one_data_set_by_split(tmp_path: Path) -> None:
    for number in range(2):
        rows = [asked(2 * number), asked(2 * number + 1)]
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", rows)
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [asked(9)])
    assert [item.id for item in read_data(tmp_path, split="train")] == ["0", "1", "2", "3"]
    assert [item.id for item in read_data(tmp_path, split="test")] == ["9"]
    assert "holds the splits test, train" in said(tmp_path)


def test_an_id_in_two_files_is_named_with_both(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [asked(0), asked(1)])
    parquet(tmp_path / "b.parquet", [asked(2), asked(0)])
    assert "b.parquet:2: sample '0': its id is that of line 1 of a.parquet too" in said(tmp_path)


def test_an_arrow_file_is_read_as_well(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist([asked(1), asked(2)])
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as sink:
        sink.write_table(table)
    assert [item.id for item in read_data(tmp_path / "file.arrow")] == ["1", "2"]


@pytest.mark.parametrize("name", ["mine.parquet", "mine.arrow"])
def test_a_damaged_table_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and no more" if name == "mine.parquet" else b"no arrows")
    assert f"{name}: cannot be read: " in said(tmp_path / name)


def test_a_table_damaged_inside_is_named_with_the_row(tmp_path: Path) -> None:
    rows = [asked(n, text=f"{n}" * 999) for n in range(4)]
    path = parquet(tmp_path / "mine.parquet", rows, row_group_size=2, compression="gzip")
    column = pytest.importorskip("pyarrow.parquet").ParquetFile(path).metadata.row_group(1).column(3)
    held = bytearray(path.read_bytes())
    at = column.dictionary_page_offset or column.data_page_offset
    held[at : at + 60] = b"x" * 60
    path.write_bytes(bytes(held))
    found = list(problems(read_data(path, check=False)))
    assert [problem.line for problem in found] == [3, 3]
    assert "mine.parquet:3: the rows from here on cannot be read: " in str(found[0])


def test_old_datasets_keep_turns_as_an_object_of_lists(tmp_path: Path) -> None:
    turns = {"from": ["human", "gpt"], "value": ["What?", "Red."]}
    (item,) = read_data(parquet(tmp_path / "mine.parquet", [{"id": "1", "conversations": turns}]))
    assert (item.question, item.answer) == ("What?", "Red.")


def test_an_object_over_several_lines_is_no_line_of_json(tmp_path: Path) -> None:
    path = lines(tmp_path, json.dumps({"data": [1]}, indent=1), name="mine.json")
    assert "must hold one whole object per line; else write an array" in said(path)


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("state.json", "{", "_indices_files"),
        ("state.json", "{}", "_data_files"),
        ("state.json", "[]", "_indices_files"),
        ("dataset_dict.json", '{"splits": []}', "splits"),
    ],
)
def test_a_saved_folder_with_a_damaged_list_is_refused(
    tmp_path: Path, name: str, text: str, key: str
) -> None:
    (tmp_path / name).write_text(text)
    assert f"{name}: has no {key}: save the data set again" in said(tmp_path)


def test_an_old_selection_of_datasets_is_refused(tmp_path: Path) -> None:
    state = {"_data_files": [], "_indices_files": [{"filename": "indices.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert "call flatten_indices() and save it again" in said(tmp_path)


def test_without_pyarrow_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "mine.parquet", [asked(1)])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError) as refused:
        read_data(path)
    assert str(refused.value) == NEEDS_PYARROW


# -- paths


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_data_set_can_be_sent_to_a_worker_process(tmp_path: Path, kind: str) -> None:
    path = lines(tmp_path, row(1), row(2))
    data = read_data(path if kind == "jsonl" else parquet(tmp_path / "mine.parquet", [asked(1), asked(2)]))
    sent = pickle.loads(pickle.dumps(data))
    assert list(sent) == list(data) and len(sent) == 2


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "nowhere: there is no such file or folder" in said(tmp_path / "nowhere")
    assert "the folder holds no .json, .jsonl, .parquet, .arrow file" in said(tmp_path)


def test_a_folder_of_two_data_files_asks_which(tmp_path: Path) -> None:
    lines(tmp_path, row(1), name="a.jsonl"), lines(tmp_path, row(2), name="b.jsonl")
    assert "the folder holds a.jsonl, b.jsonl: name the one to be read" in said(tmp_path)
    lines(tmp_path, row(1), name="test.jsonl")
    assert [item.id for item in read_data(tmp_path, split="test")] == ["1"]


def test_a_split_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a file and has no splits: leave out --split test"):
        read_data(lines(tmp_path, row(1)), split="test")
