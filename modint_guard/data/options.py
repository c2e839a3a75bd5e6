"""How a command reads its data: the options that all commands with a data set of the user's own share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from modint_guard.data.dataset import DataSet, read_data
from modint_guard.data.formats import FORMATS
from modint_guard.errors import ConfigError

Format = Annotated[
    str | None, typer.Option(help=f"One of {', '.join(FORMATS)}; without it the rows' keys tell.")
]
ImageRoot = Annotated[Path | None, typer.Option(help="Where relative pictures lie; default beside the file.")]
Split = Annotated[str | None, typer.Option(help="Of a folder that holds several, or of a generated world.")]
Family = Annotated[
    str | None, typer.Option(help="Of rows that do not say it: image-heavy, text-heavy or vqa.")
]
Column = Annotated[
    list[str] | None,
    typer.Option(help="LLaMA-Factory's name=the column's name, as in prompt=question; repeatable."),
]
NumberRows = Annotated[bool, typer.Option("--number-rows", help="Name samples by row, whatever their ids.")]


@dataclass(frozen=True)
class ReadingOptions:
    """The options with which a command reads its data; the fields have the options' names."""

    format: str | None = None
    image_root: Path | None = None
    split: str | None = None
    family: str | None = None
    column: Sequence[str] = ()
    number_rows: bool = False

    def read(self, path: Path, *, check: bool = True) -> DataSet:
        """The data set at `path`. Raises DataError and ConfigError as `read_data` does."""
        return read_data(
            path,
            format=self.format,
            image_root=self.image_root,
            split=self.split,
            family=self.family,
            columns=columns_named(self.column),
            number_rows=self.number_rows,
            check=check,
        )

    @property
    def typed(self) -> dict[str, object]:
        """The options by name, as a report's command line repeats them: without the path of a folder."""
        return {
            "format": self.format,
            "image_root": self.image_root and self.image_root.name,
            "split": self.split,
            "family": self.family,
            "column": list(self.column),
            "number_rows": self.number_rows,
        }


def columns_named(pairs: Iterable[str]) -> dict[str, str]:
    """{"prompt": "question"} from "prompt=question". Raises ConfigError for a text of another form."""
    named = {}
    for pair in pairs:
        name, sign, column = pair.partition("=")
        if not (name and sign and column):
            raise ConfigError(f"--column {pair!r} is not name=column, as in prompt=question")
        named[name] = column
    return named
