"""The way in docs/own-data.md, command by command as it stands there: a file, an adapter, an answer."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.own_data import OwnData

pytestmark = [pytest.mark.e2e, pytest.mark.trains, pytest.mark.needs("libnuma1", "curl")]


def rows_of(report: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads(report.read_text("utf-8"))["rows"]
    return {(row["model"], row["perturbation"]): row for row in rows}


def test_the_commands_of_the_docs_lead_from_a_file_to_an_adapter_that_obeys_lies_less(own: OwnData) -> None:
    assert "mine/data.json: 20 rows, format llava" in own.printed
    found = rows_of(own.folder / "runs" / "mine" / "diagnosis" / "report.json")
    base, mine = (
        found[model, "misleading_description"]["accuracy"] for model in ("tinyworld-base", "runs/mine/export")
    )
    assert mine > base  # fifty steps on twenty rows: a caption that lies decides less often


def test_the_adapter_answers_where_the_docs_serve_command_names_it(own: OwnData, scaled_url: str) -> None:
    """In an engine that serves adapters of other tests as well."""
    command = own.request.replace("http://127.0.0.1:8080", scaled_url)
    said = subprocess.run(
        ["bash", "-c", command], cwd=own.folder, capture_output=True, text=True, check=True
    ).stdout
    answer = json.loads(said)
    asked = json.loads((own.folder / "mine" / "data.json").read_text("utf-8"))[0]
    assert answer["choices"][0]["message"]["content"] in asked["modint"]["choices"]
    assert answer["modint"]["verdict"] in ("pass", "flagged")
