"""Figures of an evaluation: accuracy by perturbation as bars, every cell of it as a radar, and by dose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modint_guard.data.severity import FULL


def draw(rows: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    """Write STEM-bars.png and STEM-radar.png from the rows of `evaluate`, and STEM-doses.png where a
    perturbation was asked at two severities or more; nothing without matplotlib (extra `report`)."""
    if find_spec("matplotlib") is None:
        return []
    whole = [row for row in rows if row["severity"] in (0, FULL)]
    return [*_bars_and_radar(whole, stem), *_doses(rows, stem)]


def _bars_and_radar(rows: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    from matplotlib.figure import Figure

    models, cells = list(dict.fromkeys(row["model"] for row in rows)), list(dict.fromkeys(map(cell_of, rows)))
    by_place = {(row["model"], cell_of(row)): row for row in rows}
    bars = Figure(figsize=(8, 1 + 0.32 * len(cells) * len(models)), layout="constrained")
    axes = bars.subplots()
    for number, model in enumerate(models):
        places = [index + 0.8 * (number + 0.5) / len(models) - 0.4 for index in range(len(cells))]
        held = [by_place[model, cell] for cell in cells]
        values = [row["accuracy"] for row in held]
        below = [row["accuracy"] - row["ci_low"] for row in held]
        above = [row["ci_high"] - row["accuracy"] for row in held]
        axes.barh(places, values, 0.8 / len(models), xerr=(below, above), label=model)
    axes.set_yticks(range(len(cells)), cells)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy, 95 % interval")
    axes.legend()
    radar = Figure(figsize=(7, 7), layout="constrained")
    round_ = radar.add_subplot(projection="polar")
    angles = [2 * math.pi * index / len(cells) for index in range(len(cells))]
    for model in models:
        values = [by_place[model, cell]["accuracy"] for cell in cells]
        round_.plot([*angles, angles[0]], [*values, values[0]], label=model)
    round_.set_xticks(angles, cells, fontsize=7)
    round_.set_ylim(0, 1)
    round_.legend(loc="lower left")
    files = [stem.with_name(f"{stem.name}-{kind}.png") for kind in ("bars", "radar")]
    for figure, file in zip((bars, radar), files, strict=True):
        figure.savefig(file, dpi=120)
    return files


def _doses(rows: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    """A panel for each perturbation of a family: accuracy over the dose, the clean items at 0."""
    from matplotlib.figure import Figure

    curves = {cell: points for cell, points in doses_of(rows).items() if points}
    if not curves:
        return []
    columns = min(3, len(curves))
    high = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * high), layout="constrained")
    panels = figure.subplots(high, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (cell, by_model) in zip(panels, curves.items(), strict=False):
        for model, points in by_model.items():
            doses, values, low, high_ = zip(*points, strict=True)
            axes.plot(doses, values, marker="o", label=model)
            axes.fill_between(doses, low, high_, alpha=0.2)
        axes.set_title(cell.replace(", ", "\n", 1), fontsize=8)
        axes.set_ylim(0, 1)
        axes.set_xticks(range(FULL + 1))
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=7)
    figure.supxlabel("severity")
    figure.supylabel("accuracy, 95 % interval")
    file = stem.with_name(f"{stem.name}-doses.png")
    figure.savefig(file, dpi=120)
    return [file]


Point = tuple[int, float, float, float]  # severity, accuracy, the ends of its interval


def doses_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Point]]]:
    """The dose-response curves by cell and model, from the clean items at severity 0 on; perturbations that
    were asked at one severity alone have none."""
    clean = {(row["model"], _wording(row)): _point(row) for row in rows if not row["severity"]}
    curves: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        if row["severity"]:
            curve = curves.setdefault(cell_of(row), {}).setdefault(row["model"], [])
            curve += [_point(row)] if curve else [clean[row["model"], _wording(row)], _point(row)]
    return {
        cell: {model: sorted(points) for model, points in by_model.items()}
        for cell, by_model in curves.items()
        if all(len(points) > 2 for points in by_model.values())
    }


def _wording(row: Mapping[str, Any]) -> tuple[str, bool]:
    return row["family"], row["held_out"] == "wording"


def _point(row: Mapping[str, Any]) -> Point:
    return row["severity"], row["accuracy"], row["ci_low"], row["ci_high"]


def cell_of(row: Mapping[str, Any]) -> str:
    """How a figure names a row's condition."""
    wording = ", held-out wording" if row["held_out"] == "wording" else ""
    return f"{row['family']}, {row['perturbation'].replace('_', ' ')}{wording}"
