"""`modint-guard data validate`: counts, every problem with its place, and the exit code."""

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from modint_guard.cli import GROUP, main
from modint_guard.data import read_data
from modint_guard.data.validate import COUNTED, validate
from tests.core.items import RED

DATA = EntryPoint("data", "modint_guard.data.validate:app", GROUP)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", "validate", *arguments], [DATA])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def row(number: int, *said: str, **more: Any) -> str:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
    return json.dumps({"id": number, "conversations": turns, **more})


def written(folder: Path, rows: Sequence[str]) -> str:
    RED.save(folder / "red.png")
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "mine.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    return str(folder / "mine.jsonl")


GOOD = (
    row(1, "<image>\nWhat?\nA. red\nB. blue", "A", image="red.png", modint={"family": "image-heavy"}),
    row(2, "1 + 2?", "3", modint={"family": "text-heavy", "choices": ["3", "7"]}),
    row(3, "<image>\nDescribe it.", image="red.png"),
    row(4, "Hi?", "Hi.", "And?", "No."),
)
BAD = (
    GOOD[0],
    GOOD[1][:-9],
    row(1, "Again?", "Yes."),
    row(5, "<image>\nWhat?", "Red.", image="bad.png"),
    row(6, "<image>\nWhat?", "Red.", image="none.png"),
)


def test_a_sound_data_set_is_counted_by_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, written(tmp_path, GOOD))
    assert code == 0
    assert "mine.jsonl: 4 rows, format llava" in out and "No problems." in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert rows == [
        ["image-heavy", "1", "0", "1", "0", "0", "1", "1", "0"],
        ["text-heavy", "1", "1", "0", "0", "0", "0", "1", "0"],
        ["unknown", "2", "0", "0", "2", "1", "1", "0", "1"],
    ]
    assert "Rows of unknown family are never perturbed" in out


def test_what_becomes_of_rows_without_a_label_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heavy = {"image": "red.png", "modint": {"family": "image-heavy"}}
    rows = [row(number, "<image>\nWhat?", **heavy) for number in (5, 6)]
    _, out, _ = run(capsys, written(tmp_path, (*GOOD, *rows)))
    assert "2 rows without a label: training takes them for the consistency loss only." in out
    # The row of unknown family has no twin that it could agree with.
    assert "1 rows without a label are never perturbed: training leaves them out." in out
    _, out, _ = run(capsys, written(tmp_path, GOOD[:2]))
    assert "without a label" not in out


def test_every_problem_is_listed_with_line_and_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, BAD)
    code, out, _ = run(capsys, path)
    assert code == 2
    listed = [line.removeprefix("! ") for line in out.splitlines() if line.startswith("! ")]
    assert [line.partition(": ")[0] for line in listed] == [f"{path}:{n}" for n in (2, 3, 4, 5)]
    reasons = ("not JSON", "its id is that of line 1", "cannot be used", "is not in")
    assert [said in line for said, line in zip(reasons, listed, strict=True)] == [True] * 4
    assert out.endswith("4 problems\n")


def test_problems_beyond_those_told_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, written(tmp_path, BAD), "--problems", "1")
    assert code == 2
    assert sum(line.startswith("! ") for line in out.splitlines()) == 1
    assert out.endswith("4 problems, 3 more than shown (--problems)\n")


def test_the_report_can_be_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, BAD)
    code, out, _ = run(capsys, path, "--json")
    report = json.loads(out)
    assert code == 2
    assert (report["rows"], report["format"], report["problems"]) == (5, "llava", 4)
    assert report["files"] == [path] and report["sha256"] == read_data(Path(path), check=False).digest()
    assert [(shown["line"], shown["sample"]) for shown in report["shown"]] == [
        (2, None),
        (3, "1"),
        (4, "5"),
        (5, "6"),
    ]
    assert set(report["families"]["image-heavy"]) == set(COUNTED)


def test_pictures_can_be_left_undecoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, BAD[3:4])
    assert run(capsys, path)[0] == 2
    assert run(capsys, path, "--no-pictures")[0] == 0


def test_options_reach_the_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    RED.save(tmp_path / "pictures" / "card.png")
    rows = [json.dumps({"id": 1, "ask": "<image>What?", "say": "Red.", "shot": "card.png"})] * 2
    path = written(tmp_path, rows)
    named = ("prompt=ask", "response=say", "images=shot")
    columns = [word for pair in named for word in ("--column", pair)]
    code, out, _ = run(
        capsys,
        path,
        *columns,
        *("--image-root", str(tmp_path / "pictures")),
        *("--family", "vqa", "--format", "llama-factory", "--number-rows"),
    )
    assert (code, "format llama-factory" in out, "vqa" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--column", "prompt"], "--column 'prompt' is not name=column, as in prompt=question\n"),
        (["--format", "alpaca"], "no format 'alpaca': name one of llava, sharegpt"),
        (["--family", "images"], "unknown family 'images': name one of image-heavy"),
        (["--split", "test"], "is a file and has no splits"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out, err = run(capsys, written(tmp_path, GOOD), *arguments)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_a_data_set_without_a_readable_row_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, ["{", "{"])
    code, out, err = run(capsys, path)
    assert (code, out) == (2, "") and err.startswith(f"{path}:1: not JSON: ")


def test_what_a_shell_would_read_as_markup_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = row(1, "<image>\nWhat?", "Red.", image="[bold]none[/bold].png")
    assert "'[bold]none[/bold].png' is not in" in run(capsys, written(tmp_path, [said]))[1]


def test_further_checks_are_those_of_the_caller(tmp_path: Path) -> None:
    data = read_data(Path(written(tmp_path, GOOD)))
    steps: list[None] = []
    found = validate(data, advance=lambda: steps.append(None))
    assert (found.problems, len(steps)) == ([], 4)
