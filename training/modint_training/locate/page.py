"""A study as files: `report.json`, `report.md`, and one HTML page with heat maps and curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modint_guard.evaluation.page import rendered, write_files
from modint_guard.evaluation.results import ResultRow, recorded, table
from modint_guard.types import JSON
from modint_training.locate.located import Located
from modint_training.locate.subject import KINDS
from modint_training.locate.twins import GROUPS

WIDTH, HEIGHT = 320.0, 150.0  # of a curve, in its own units
LONG = ("sites", "heads")  # tables of which the page shows maps
Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Cell:
    """A value of a heat map, None if there is none; `is_exact` if it is no estimate."""

    value: float | None
    is_exact: bool = False

    @property
    def strength(self) -> int:
        """How strong its colour is, in percent of the full one, which 1 has."""
        return round(100 * min(1.0, abs(self.value or 0.0)))

    @property
    def side(self) -> str:
        """The name of its colour."""
        return "against" if (self.value or 0.0) < 0 else "for"


@dataclass(frozen=True)
class HeatMap:
    """Layers down, token groups or heads across."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[int, Sequence[Cell]]]


@dataclass(frozen=True)
class Curves:
    """Lines over the same axis: for each name the points of an SVG polyline, then the ends of both axes."""

    title: str
    lines: Mapping[str, str]
    across: tuple[float, float]
    up: tuple[float, float]
    zero: float


def write_report(folder: Path, located: Located, *, command: str, seed: int) -> list[Path]:
    """Write the three files of a study into `folder`; gives their paths."""
    record = recorded(command, [seed], located.rows)
    return write_files(
        folder, as_json(record, located), markdown(record, located), lambda: html(record, located)
    )


def as_json(record: JSON, located: Located) -> JSON:
    """Rows (the sites) with what made them, and all other tables."""
    return {
        **record,
        "model": located.model,
        "data": located.data,
        "finding": list(located.finding),
        **{name: list(each.rows) for name, each in located.tables.items() if name != "sites"},
        "notes": list(located.notes),
    }


def markdown(record: JSON, located: Located) -> str:
    """The same as tables; of the sites those that were patched exactly."""
    parts = [f"# {_title(located)}", *located.finding, f"Made by `{record['command']}`."]
    for name, each in located.tables.items():
        rows = [row for row in each.rows if name != "sites" or row["recovery"] is not None]
        if rows:
            parts += [f"## {each.heading}", table(rows), each.note]
    return "\n\n".join([*parts, "## Limits", "\n".join(f"- {note}" for note in located.notes) + "\n"])


def html(record: JSON, located: Located) -> str:
    """One page: style and figures inside; texts escaped. Needs jinja2."""
    return rendered(
        "locate.html.jinja",
        package="modint_training.locate",
        title=_title(located),
        record=record,
        located=located,
        tables=[each for name, each in located.tables.items() if name not in LONG and each.rows],
        maps=[*site_maps(located), *head_maps(located)],
        figures=figures(located),
        width=WIDTH,
        height=HEIGHT,
        number=number,
    )


def _title(located: Located) -> str:
    return f"Where interference sits in {located.model}, on {located.data}"


def number(value: object) -> str:
    """A value of a table: two decimals, a dash for none."""
    if value is None:
        return "–"
    return f"{value:z.2f}".replace("-", "−") if isinstance(value, float) else str(value)


# -- maps -----------------------------------------------------------------------------------------------


def site_maps(located: Located) -> list[HeatMap]:
    """For each family and kind but heads: the recovery in each layer and token group, exact if it is"
    " known."""
    families = dict.fromkeys(row["family"] for row in located.rows)
    return [
        HeatMap(f"{family}: {kind}", GROUPS, _grid(rows, "group", GROUPS, _recovery))
        for family in families
        for kind in KINDS
        if kind != "head"
        for rows in [[row for row in located.rows if (row["family"], row["site"]) == (family, kind)]]
    ]


def head_maps(located: Located) -> list[HeatMap]:
    """For each family the estimated recovery of each head, over all token groups, and what ablating it alone
    does beside a lie."""
    every = located.tables["heads"].rows
    maps = []
    for family in dict.fromkeys(row["family"] for row in every):
        rows = [row for row in every if row["family"] == family]
        heads = sorted({row["head"] for row in rows})
        for title, cell in (("heads, recovery", _recovery), ("heads, nats gained if ablated", _ablated)):
            grid = _grid(rows, "head", heads, cell)
            maps.append(HeatMap(f"{family}: {title}", [str(head) for head in heads], grid))
    return maps


def _grid(
    rows: Sequence[ResultRow], column: str, columns: Sequence[object], cell: Callable[[ResultRow], Cell]
) -> list[tuple[int, Sequence[Cell]]]:
    cells = {(row["layer"], row[column]): cell(row) for row in rows}
    return [
        (layer, [cells[layer, each] for each in columns]) for layer in sorted({row["layer"] for row in rows})
    ]


def _recovery(row: ResultRow) -> Cell:
    exact = row.get("recovery")
    return Cell(row["attribution"]) if exact is None else Cell(exact, is_exact=True)


def _ablated(row: ResultRow) -> Cell:
    return Cell(row["ablated"], is_exact=True)


# -- curves ---------------------------------------------------------------------------------------------


def figures(located: Located) -> list[Curves]:
    """The curves over layers, over ablated heads and over kept modules; those without points are left out."""
    drawn = []
    for name, of, x, columns in (
        ("edges", ("family",), "layer", {"gap": "edge"}),
        ("competition", ("family",), "layer", ("image", "context", "displacement")),
        ("overlap", ("space",), "layer", ("a_distance", "mmd", "subspace")),
        ("consistency", ("space",), "layer", ("cka", "shuffled")),
        ("ablation", ("family",), "heads", ("flips_removed", "random", "accuracy", "beside_truth")),
        ("kept", (), "modules", ("restored", "restored_accuracy")),
    ):
        heading, rows = located.tables[name].heading, located.tables[name].rows
        for key in dict.fromkeys(tuple(row[each] for each in of) for row in rows):
            chosen = [row for row in rows if tuple(row[each] for each in of) == key]
            title = " · ".join((heading, *key, f"by {x}"))
            drawn.append(curves(title, _lines(chosen, x, columns)))
    return [each for each in drawn if each is not None]


def _lines(
    rows: Sequence[ResultRow], x: str, columns: Sequence[str] | Mapping[str, str]
) -> dict[str, Points]:
    """By the line's name its points: a line for each column, or for each value of the column that a mapping
    names beside the one that is drawn."""
    if isinstance(columns, Mapping):
        (drawn, by), *_ = columns.items()
        names = dict.fromkeys(row[by] for row in rows)
        return {name: [(row[x], row[drawn]) for row in rows if row[by] == name] for name in names}
    return {name: [(row[x], row[name]) for row in rows] for name in columns}


def curves(title: str, lines: Mapping[str, Points]) -> Curves | None:
    """Lines scaled to one picture, of which 0 is always a part; None if no line has two points."""
    known = {name: [(x, y) for x, y in points if y is not None] for name, points in lines.items()}
    known = {name: points for name, points in known.items() if len(points) > 1}
    every = [point for points in known.values() for point in points]
    if not every:
        return None
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(0.0, *(y for _, y in every)), max(0.0, *(y for _, y in every))

    def down(y: float) -> float:
        return round(HEIGHT * (high - y) / ((high - low) or 1.0), 1)

    def at(x: float, y: float) -> str:
        return f"{WIDTH * (x - left) / ((right - left) or 1.0):.1f},{down(y):g}"

    drawn = {name: " ".join(at(x, y) for x, y in points) for name, points in known.items()}
    return Curves(title, drawn, (left, right), (low, high), down(0.0))
