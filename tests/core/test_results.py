"""Result files: the JSON and the Markdown tell the same rows, and what made them."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modint_guard.evaluation.results import (
    cell,
    command_line,
    commit,
    machine,
    table,
    versions,
    write_results,
)

ROWS = [
    {"model": "base", "n": 400, "accuracy": 0.08249, "ci_low": None},
    {"model": "robust-lora", "n": 400, "accuracy": 0.75, "ci_low": 0.7},
]
TABLE = """\
| model | n | accuracy | ci_low |
| --- | --- | --- | --- |
| base | 400 | 0.082 | – |
| robust-lora | 400 | 0.750 | 0.700 |
"""


def write(path: Path, rows: list[dict[str, Any]] = ROWS, notes: str = "") -> None:
    write_results(path, command="count --seed 3", seeds=[3], rows=rows, title="Shares", notes=notes)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_table_shows_three_decimals_and_a_dash_for_none() -> None:
    assert table(ROWS) == TABLE
    assert [cell(value) for value in (1, 1.0, True, None, "a")] == ["1", "1.000", "True", "–", "a"]


def test_a_command_line_is_what_was_typed() -> None:
    assert command_line("data validate", "my data.json", number_rows=True, family=None, limit=0) == (
        "modint-guard data validate 'my data.json' --number-rows --limit 0"
    )
    assert command_line("diagnose", local=False, severity=[1, 5], perturbation=[], alpha=0.1) == (
        "modint-guard diagnose --severity 1 --severity 5 --alpha 0.1"
    )


def test_the_json_holds_the_rows_and_what_made_them(tmp_path: Path) -> None:
    path = tmp_path / "results" / "shares.json"
    write(path)
    record = json.loads(path.read_text("utf-8"))
    assert list(record) == ["command", "commit", "seeds", "versions", "machine", "rows"]
    assert (record["command"], record["seeds"], record["rows"]) == ("count --seed 3", [3], ROWS)
    assert (record["versions"], record["machine"]) == (versions(), machine())


def test_the_markdown_beside_it_is_made_from_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "shares.json"
    write(path, notes="Intervals: 95 %.")
    made = f"Made by `count --seed 3` at commit {commit()}; the same rows are in `shares.json`."
    assert path.with_suffix(".md").read_text("utf-8") == f"# Shares\n\n{made}\n\nIntervals: 95 %.\n\n{TABLE}"
    write(path)
    assert path.with_suffix(".md").read_text("utf-8") == f"# Shares\n\n{made}\n\n{TABLE}"


@pytest.mark.parametrize("rows", [[], [ROWS[0], {"model": "robust-lora"}]])
def test_rows_without_a_common_shape_are_refused_and_nothing_is_written(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(ValueError, match=f"rows with the same keys; got {len(rows)} rows"):
        write(tmp_path / "shares.json", rows)
    assert not list(tmp_path.iterdir())


def test_versions_name_the_python_and_the_packages_that_are_there() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert {"modint-guard", "numpy"} <= set(found)


def test_the_commit_says_when_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert commit() == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "Add a")
    clean = commit()
    assert len(clean) == 12 and int(clean, 16) >= 0
    (tmp_path / "a.txt").write_text("two")
    assert commit() == f"{clean}+changes"
