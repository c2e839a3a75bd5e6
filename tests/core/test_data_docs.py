"""The pages on data tell the truth: their examples are read, and they name every format, option and key."""

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
from tests.core.pages import DOCS, text

PAGE, FORMATS_PAGE = (text(DOCS / name) for name in ("data.md", "data-formats.md"))
EXAMPLE = re.compile(r"^### `([\w-]+)`\n(.*?)^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = {name: content for name, _, content in EXAMPLE.findall(FORMATS_PAGE)}


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
