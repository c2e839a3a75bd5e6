"""The demo's tables: one telling answer of each kind, and accuracy and flags of base beside adapter."""

from collections.abc import Sequence

from rich.table import Table

from modint_guard.data.item import Item, prompt, reply_for
from modint_guard.evaluation.runner import Row
from modint_guard.models import ADAPTER, BASE


def examples(rows: Sequence[Row]) -> Table:
    """One telling answer of each kind, base beside adapter."""
    table = Table(title="Examples", show_lines=True)
    for column in ("kind", "question", "truth", "model", "answer", "verdict", "cause", "risk"):
        table.add_column(column, overflow="fold", no_wrap=column not in ("kind", "question"))
    for kind in dict.fromkeys(_kind(row.item) for row in rows):
        answers = [row for row in rows if _kind(row.item) == kind and row.model == BASE]
        base = max(answers, key=lambda row: (row.flagged, not row.right))
        adapter = next(row for row in rows if row.item.id == base.item.id and row.model == ADAPTER)
        truth = reply_for(base.item, base.item.answer)
        table.add_row(kind, prompt(base.item), truth, *_cells(base))
        table.add_row("", "", "", *_cells(adapter))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    modint = row.modint or {}
    risk = modint.get("risk")
    return (
        row.model,
        f"{row.answer} {'✓' if row.right else '✗'}",
        modint.get("verdict") or "–",
        modint.get("cause") or modint.get("reason") or "–",
        "–" if risk is None else f"{risk:.2f}",
    )


def summary(rows: Sequence[Row]) -> Table:
    """Accuracy and flags by kind, base beside adapter."""
    table = Table(title="Accuracy, and flags on wrong and on right answers")
    for column in ("kind", "model", "n", "right", "flagged of wrong", "flagged of right"):
        table.add_column(column, justify="left" if column in ("kind", "model") else "right", no_wrap=True)
    for kind in dict.fromkeys(_kind(row.item) for row in rows):
        for model in (BASE, ADAPTER):
            answers = [row for row in rows if _kind(row.item) == kind and row.model == model]
            right = [row for row in answers if row.right]
            wrong = [row for row in answers if not row.right]
            table.add_row(
                kind if model == BASE else "",
                model,
                str(len(answers)),
                f"{len(right) / len(answers):.0%}",
                f"{sum(row.flagged for row in wrong)}/{len(wrong)}",
                f"{sum(row.flagged for row in right)}/{len(right)}",
            )
    return table


def _kind(item: Item) -> str:
    return f"{item.family}, {item.perturbation.replace('_', ' ')}"
