"""The way in docs/own-data.md, command by command as it stands there: a file, an adapter, an answer."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modint_guard.cli import main
from modint_guard.demo.launch import serving

pytestmark = [pytest.mark.e2e, pytest.mark.needs("libnuma1", "curl")]

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"


def blocks() -> list[str]:
    """The page's blocks for a shell."""
    return re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def run(command: str) -> None:
    """In this process: what the commands import takes most of their time."""
    program, *words = shlex.split(command)
    assert program == "modint-guard"
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code, command


def rows_of(report: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads(report.read_text("utf-8"))["rows"]
    return {(row["model"], row["perturbation"]): row for row in rows}


def test_the_commands_of_the_docs_lead_from_a_file_to_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands, request = blocks()
    *before, serve = commands.splitlines()
    for command in before:
        run(command)
    assert "mine/data.json: 20 rows, format llava" in capsys.readouterr().out
    found = rows_of(tmp_path / "runs" / "mine" / "diagnosis" / "report.json")
    base, mine = (
        found[model, "misleading_description"]["accuracy"] for model in ("tinyworld-base", "runs/mine/export")
    )
    assert mine > base  # fifty steps on twenty rows: a caption that lies decides less often
    program, subcommand, *arguments = shlex.split(serve)
    assert (program, subcommand) == ("modint-guard", "serve")
    with (tmp_path / "serve.log").open("wb") as log, serving(arguments, output=log) as served:
        command = request.replace("http://127.0.0.1:8080", served.url)
        said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    answer = json.loads(said)
    asked = json.loads((tmp_path / "mine" / "data.json").read_text("utf-8"))[0]
    assert answer["choices"][0]["message"]["content"] in asked["modint"]["choices"]
    assert answer["modint"]["verdict"] in ("pass", "flagged")
