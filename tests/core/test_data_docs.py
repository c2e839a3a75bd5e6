"""docs/data.md tells the truth: its examples are read, and it names every format, option and key."""

import inspect
import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from modint_guard.data import FORMATS, problems, read_data
from modint_guard.data.samples import EXTRA_KEYS
from modint_guard.data.validate import app
from tests.core.items import RED

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
EXAMPLE = re.compile(r"^### `([\w-]+)`\n(.*?)^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = {name: text for name, _, text in EXAMPLE.findall(PAGE)}


def test_every_format_has_an_example() -> None:
    assert list(EXAMPLES) == list(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_a_format_is_read_as_that_format(tmp_path: Path, name: str) -> None:
    RED.save(tmp_path / "red.png")
    (tmp_path / "mine.json").write_text(EXAMPLES[name], "utf-8")
    data = read_data(tmp_path / "mine.json")
    assert data.format == name
    assert list(problems(data)) == []
    assert len(data) == len(json.loads(EXAMPLES[name]))


def test_every_option_and_every_key_is_named() -> None:
    command = getattr(get_command(app), "commands", {})["validate"]
    flags = {flag for option in command.params for flag in option.opts if flag.startswith("--")}
    arguments = {name for name in inspect.signature(read_data).parameters if name != "path"}
    named = [*(flags - {"--pictures"}), "--no-pictures", *arguments, *EXTRA_KEYS]
    assert [name for name in named if not re.search(rf"`{re.escape(name)}[`\s]", PAGE)] == []
