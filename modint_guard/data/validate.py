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

from modint_guard.data.class_folders import questions
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
app.command("questions")(questions)


@dataclass(frozen=True)
class Findings:
    """Counts, by family, of the rows that can be read; the first problems; and how many `more` there are."""

    data: DataSet
    counts: dict[str, Counter[str]]
    problems: list[DataError]
    more: int = 0

    def to_json(self) -> JSON:
        """The findings as one object."""
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
    """Counts samples by family."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        item = sample.item
        holds = {
            "samples": True,
            item.form: True,
            "unlabelled": not item.labelled,
            "with picture": "image" in sample.pictures,
            "with lie": bool(item.wrong),
            "several turns": bool(item.turns),
        }
        self.counts.setdefault(item.family, Counter()).update(name for name, value in holds.items() if value)


def validate(
    data: DataSet,
    *,
    limit: int = SHOWN,
    pictures: bool = True,
    checks: Sequence[Callable[[Item], None]] = (),
    advance: Callable[[], None] = lambda: None,
) -> Findings:
    """Read every row of a data set.

    limit: how many problems are kept; all are counted. pictures: decode every picture. checks: further checks
    of a loaded item, which raise DataError. advance: called after each readable row.
    """
    tally = _Tally()

    def seen(sample: Sample) -> None:
        tally.add(sample)
        advance()

    errors = iter(problems(data, pictures=pictures, checks=checks, seen=seen))
    kept = list(islice(errors, limit))
    more = sum(1 for _ in errors)
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
        findings = validate(rows, limit=shown, pictures=pictures, advance=lambda: progress.advance(bar))
    if as_json:
        typer.echo(json.dumps(findings.to_json(), indent=1))
    else:
        _print(findings)
    if findings.problems:
        raise typer.Exit(2)


def unlabelled(counts: dict[str, Counter[str]]) -> list[str]:
    """Sentences that say what training does with the rows that have no label."""
    without = {family: counted["unlabelled"] for family, counted in counts.items() if counted["unlabelled"]}
    twins = sum(count for family, count in without.items() if applicable(family))
    rest = sum(without.values()) - twins
    return [
        *(
            [f"{twins} rows without a label: training takes them for the consistency loss only."]
            * (twins > 0)
        ),
        *([f"{rest} rows without a label are never perturbed: training leaves them out."] * (rest > 0)),
    ]


def _print(findings: Findings) -> None:
    wide = None if sys.stdout.isatty() else 120
    console = Console(width=wide, soft_wrap=True, highlight=False)
    files = findings.data.files
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    console.print(f"{escape(str(files[0]))}{more}: {len(findings.data)} rows, format {findings.data.format}")
    table = Table()
    for name in ("family", *COUNTED):
        table.add_column(name, justify="left" if name == "family" else "right", no_wrap=True)
    for family, counted in findings.counts.items():
        table.add_row(family, *(str(counted[name]) for name in COUNTED))
    if findings.counts:
        console.print(table)
    if "unknown" in findings.counts:
        console.print(
            "Rows of unknown family are never perturbed: name theirs with --family or `modint.family`."
        )
    for sentence in unlabelled(findings.counts):
        console.print(sentence)
    for problem in findings.problems:
        console.print(f"[red]![/] {escape(str(problem))}")
    count = len(findings.problems) + findings.more
    hidden = f", {findings.more} more than shown (--problems)" if findings.more else ""
    console.print(f"{count} problems{hidden}" if count else "No problems.")
