"""The demo's tables: a telling answer of each kind, accuracy and flags, with all ways of asking compared."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from modint_guard.data.item import Item, prompt, reply_for
from modint_guard.evaluation.runner import Row

Answers = Mapping[str, Sequence[Row]]  # by the label of each way of asking, all in the items' order


def examples(answers: Answers, *, by: str = "model") -> Table:
    """One telling answer of each kind, and what was answered to the same item when it was asked otherwise."""
    table = Table(title="Examples", show_lines=True)
    long = ("kind", "question", "truth", "answer")
    for column in ("kind", "question", "truth", by, "answer", "verdict", "cause", "risk"):
        table.add_column(column, overflow="fold", no_wrap=column not in long)
    for kind, places in _kinds(answers):
        first = next(iter(answers.values()))
        place = max(places, key=lambda place: (first[place].flagged, not first[place].right))
        item = first[place].item
        head = (kind, prompt(item), reply_for(item, item.answer))
        for label, rows in answers.items():
            table.add_row(*head, label, *_cells(rows[place]))
            head = ("", "", "")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    modint = row.modint or {}
    risk = modint.get("risk")
    return (
        f"{row.answer} {'✓' if row.right else '✗'}",
        modint.get("verdict") or "–",
        modint.get("cause") or modint.get("reason") or "–",
        "–" if risk is None else f"{risk:.2f}",
    )


def summary(answers: Answers, *, by: str = "model") -> Table:
    """Accuracy and flags by kind."""
    table = Table(title="Accuracy, and flags on wrong and on right answers")
    for column in ("kind", by, "n", "right", "flagged of wrong", "flagged of right"):
        table.add_column(column, justify="left" if column in ("kind", by) else "right", no_wrap=True)
    for kind, places in _kinds(answers):
        for label, rows in answers.items():
            chosen = [rows[place] for place in places]
            right = [row for row in chosen if row.right]
            wrong = [row for row in chosen if not row.right]
            table.add_row(
                kind,
                label,
                str(len(chosen)),
                f"{len(right) / len(chosen):.0%}",
                f"{sum(row.flagged for row in wrong)}/{len(wrong)}",
                f"{sum(row.flagged for row in right)}/{len(right)}",
            )
            kind = ""
    return table


def _kinds(answers: Answers) -> Iterator[tuple[str, list[int]]]:
    """Each kind of item with the places of its rows, as they first occur."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(next(iter(answers.values()))):
        places.setdefault(_kind(row.item), []).append(place)
    yield from places.items()


def _kind(item: Item) -> str:
    return f"{item.family}, {item.perturbation.replace('_', ' ')}"
