"""How a command's data are read: the options that every command with data of the user's own has alike."""

from pathlib import Path
from typing import Annotated

import typer

from modint_guard.data.formats import FORMATS

Format = Annotated[
    str | None, typer.Option(help=f"One of {', '.join(FORMATS)}; without it the rows' keys tell.")
]
ImageRoot = Annotated[Path | None, typer.Option(help="Where relative pictures lie; default beside the file.")]
Split = Annotated[str | None, typer.Option(help="Of a folder that holds several.")]
Family = Annotated[
    str | None, typer.Option(help="Of rows that do not say it: image-heavy, text-heavy or vqa.")
]
Column = Annotated[
    list[str] | None,
    typer.Option(help="LLaMA-Factory's name=the column's name, as in prompt=question; repeatable."),
]
NumberRows = Annotated[bool, typer.Option("--number-rows", help="Name samples by row, whatever their ids.")]
