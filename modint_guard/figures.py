"""Figures of an evaluation: accuracy by perturbation as bars, and every cell of it as a radar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def draw(rows: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    """Write STEM-bars.png and STEM-radar.png from the rows of `evaluate`; nothing without matplotlib (extra
    `report`)."""
    if find_spec("matplotlib") is None:
        return []
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


def cell_of(row: Mapping[str, Any]) -> str:
    """How a figure names a row's condition."""
    wording = ", held-out wording" if row["held_out"] == "wording" else ""
    return f"{row['family']}, {row['perturbation'].replace('_', ' ')}{wording}"
