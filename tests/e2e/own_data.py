"""What docs/own-data.md says, done: the commands up to `serve`, whose arguments are kept."""

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from modint_guard.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"


@dataclass(frozen=True)
class OwnData:
    """The folder in which the page's commands ran, what they printed, the words behind `modint-guard serve`,
    and the request that follows."""

    folder: Path
    printed: str
    served: list[str]
    request: str


def follow_page(folder: Path) -> OwnData:
    """Runs the page's commands in `folder`, but for the last, which serves."""
    commands, request = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    *before, serve = commands.splitlines()
    program, subcommand, *served = shlex.split(serve)
    assert (program, subcommand) == ("modint-guard", "serve")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        for command in before:
            _run(command)
    return OwnData(folder, printed.getvalue(), served, request)


def _run(command: str) -> None:
    """In this process: what the commands import takes most of their time."""
    program, *words = shlex.split(command)
    assert program == "modint-guard"
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code, command
