"""`modint-guard data validate`: what a data set holds, and everything that is wrong with it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from modint_guard.data.dataset import DataSet, problems
from modint_guard.data.item import RELEVANT, Item
from modint_guard.data.options import (
    Column,
    Family,
    Format,
    ImageRoot,
    NumberRows,
    ReadingOptions,
    Split,
)
from modint_guard.data.perturb import applicable
from modint_guard.data.samples import Sample
from modint_guard.errors import DataError
from modint_guard.types import JSON

SHOWN = 20
COUNTED = ("samples", "word", "letter", "free", "unlabelled", "with picture", "with lie", "several turns")

app = typer.Typer(help="Look at data sets before they are trained on or asked.", no_args_is_help=True)


@dataclass(frozen=True)
class Findings:
    """Counts by family of the rows that can be read, and the problems, the first `limit` of them in words."""

    data: DataSet
    counts: dict[str, Counter[str]]
    problems: list[DataError]
    more: int = 0

    def to_json(self) -> JSON:
        """The report as one object."""
        return {
            "files": [str(file) for file in self.data.files],
            "format": self.data.format,
            "rows": len(self.data),
            "sha256": self.data.digest(),
            "families": {
                family: {name: counted[name] for name in COUNTED} for family, counted in self.counts.items()
            },
            "problems": len(self.problems) + self.more,
            "shown": [
                {"file": p.file, "line": p.line, "sample": p.sample, "problem": p.problem}
                for p in self.problems
            ],
        }


@dataclass
class _Tally:
    """Counts as samples go by."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def see(self, sample: Sample) -> None:
        item = sample.item
        seen = {
            "samples": True,
            item.form: True,
            "unlabelled": not item.labelled,
            "with picture": "image" in sample.pictures,
            "with lie": bool(item.wrong),
            "several turns": bool(item.turns),
        }
        self.counts.setdefault(item.family, Counter()).update(name for name, so in seen.items() if so)


def validate(
    data: DataSet,
    *,
    limit: int = SHOWN,
    pictures: bool = True,
    checks: Sequence[Callable[[Item], None]] = (),
    advance: Callable[[], None] = lambda: None,
) -> Findings:
    """Read every row, and decode every picture unless told not to; `checks` are further ones of a loaded
    item. At most `limit` problems are kept, all are counted."""
    tally = _Tally()

    def seen(sample: Sample) -> None:
        tally.see(sample)
        advance()

    found = iter(problems(data, pictures=pictures, checks=checks, seen=seen))
    kept = list(islice(found, limit))
    more = sum(1 for _ in found)
    families = [family for family in RELEVANT if family in tally.counts]
    return Findings(data, {family: tally.counts[family] for family in families}, kept, more)


@app.callback()
def _data() -> None:
    """Keeps `validate` a command of its own."""


@app.command("validate")
def command(
    data: Annotated[Path, typer.Argument(help="A JSON, JSONL, Parquet or Arrow file, or a folder.")],
    format: Format = None,
    image_root: ImageRoot = None,
    split: Split = None,
    family: Family = None,
    column: Column = None,
    number_rows: NumberRows = False,
    pictures: Annotated[bool, typer.Option(help="Decode every picture.")] = True,
    shown: Annotated[
        int, typer.Option("--problems", min=1, help="Problems told in words; all are counted.")
    ] = SHOWN,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read a whole data set; say what it holds and everything that is wrong with it (exit code 2)."""
    options = ReadingOptions(format, image_root, split, family, tuple(column or ()), number_rows)
    rows = options.read(data, check=False)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("reading", total=len(rows))
        found = validate(rows, limit=shown, pictures=pictures, advance=lambda: progress.advance(bar))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        _print(found)
    if found.problems:
        raise typer.Exit(2)


def unlabelled(counts: dict[str, Counter[str]]) -> list[str]:
    """What training does with the rows that have no label, a sentence each."""
    found = {family: counted["unlabelled"] for family, counted in counts.items() if counted["unlabelled"]}
    twins = sum(count for family, count in found.items() if applicable(family))
    rest = sum(found.values()) - twins
    return [
        *(
            [f"{twins} rows without a label: training takes them for the consistency loss only."]
            * (twins > 0)
        ),
        *([f"{rest} rows without a label are never perturbed: training leaves them out."] * (rest > 0)),
    ]


def _print(found: Findings) -> None:
    wide = None if sys.stdout.isatty() else 120
    console = Console(width=wide, soft_wrap=True, highlight=False)
    files = found.data.files
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    console.print(f"{escape(str(files[0]))}{more}: {len(found.data)} rows, format {found.data.format}")
    table = Table()
    for name in ("family", *COUNTED):
        table.add_column(name, justify="left" if name == "family" else "right", no_wrap=True)
    for family, counted in found.counts.items():
        table.add_row(family, *(str(counted[name]) for name in COUNTED))
    if found.counts:
        console.print(table)
    if "unknown" in found.counts:
        console.print(
            "Rows of unknown family are never perturbed: name theirs with --family or `modint.family`."
        )
    for said in unlabelled(found.counts):
        console.print(said)
    for problem in found.problems:
        console.print(f"[red]![/] {escape(str(problem))}")
    count = len(found.problems) + found.more
    hidden = f", {found.more} more than shown (--problems)" if found.more else ""
    console.print(f"{count} problems{hidden}" if count else "No problems.")
