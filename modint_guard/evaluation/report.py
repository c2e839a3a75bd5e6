"""The report of a diagnosis: `report.json`, `report.md`, and one HTML page that needs no network.

The page is bounded whatever the number of items: figures are over all of them, and WORST are shown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from modint_guard.chat.images import png_data_url
from modint_guard.data.item import asked
from modint_guard.data.perturb import CLEAN, REGISTRY
from modint_guard.data.severity import FULL
from modint_guard.evaluation.effects import direction
from modint_guard.evaluation.results import recorded, table
from modint_guard.evaluation.tables import Found, compared, consistency, dose_response
from modint_guard.evaluation.tables import table as rows_of
from modint_guard.judging.divergence import js_divergence
from modint_guard.types import JSON

WORST = 24  # answers shown with their pictures
TURNED = "Answers that were turned, the furthest first"  # their heading
CELL_CHARACTERS = 200  # of a text in a Markdown table
CARD_CHARACTERS = 500  # of a text on the page
THUMBNAIL = 192  # pixels, the longer side
RADIUS = 100.0  # of the radar, in its own units
HEAT = ("accuracy", "harmful_flip", "js", "perceptual_image", "perceptual_text", "text_preference")
LIMITS = (
    "Figures are of the items asked and of nothing else: another data set, wording or prompt may differ.",
    "Answers were asked greedily, once; an engine's own noise is not taken out.",
    "Divergences are over the options where the endpoint lists them all, else lower bounds of top-k lists.",
    "Intervals are 95 %, clustered by source; many rows were looked at, no p-value is corrected for that.",
)


@dataclass(frozen=True)
class Diagnosis:
    """Everything a report says, as plain records."""

    data: str
    models: tuple[str, ...]
    finding: tuple[str, str]
    rows: Sequence[Mapping[str, Any]]
    doses: Sequence[Mapping[str, Any]]
    comparison: Sequence[Mapping[str, Any]]
    consistency: Sequence[Mapping[str, Any]]
    radar: Mapping[str, Mapping[str, float]]
    worst: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows with a heading and what their columns mean; the page shows those that are alike `by` these columns
    under one line that names them.
    """

    heading: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""
    by: tuple[str, ...] = ()


def write_report(
    folder: Path, found: Mapping[str, Sequence[Found]], *, command: str, seed: int, data: str
) -> list[Path]:
    """Write the three files into `folder`; gives their paths. Without jinja2 there is no HTML."""
    made = diagnosis(found, data=data)
    record = recorded(command, [seed], made.rows)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json", folder / "report.md"]
    written[0].write_text(json.dumps(as_json(record, made), indent=1) + "\n", "utf-8")
    written[1].write_text(markdown(record, made), "utf-8")
    if find_spec("jinja2") is not None:
        written.append(folder / "report.html")
        written[2].write_text(html(record, made), "utf-8")
    return written


def diagnosis(found: Mapping[str, Sequence[Found]], *, data: str) -> Diagnosis:
    """All tables and figures, from the answers of one or two models."""
    rows = [row for model, own in found.items() for row in rows_of(model, own)]
    comparison = [
        row
        for first, second in combinations(found, 2)
        for row in compared((first, second), found[first], found[second])
    ]
    same = {model: known for model, own in found.items() if (known := consistency(own))}
    worst = [shown for model, own in found.items() for shown in worst_of(model, own)]
    worst.sort(key=lambda shown: -(shown["js"] or 0.0))
    return Diagnosis(
        data=data,
        models=tuple(found),
        finding=finding(tuple(found), rows, comparison),
        rows=rows,
        doses=list(dose_response(rows)),
        comparison=comparison,
        consistency=[{"model": model, **known} for model, known in same.items()],
        radar={model: radar(model, rows, same.get(model)) for model in found},
        worst=worst[:WORST],
        notes=(*LIMITS, *_methods(found)),
    )


def finding(
    models: Sequence[str], rows: Sequence[Mapping[str, Any]], comparison: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    """Two sentences: what the first model loses to which perturbation, and what decides there, or how the
    second model does under the same.
    """
    model, *others = models
    lost = [row for row in rows if row["model"] == model and row["change"] is not None]
    if not lost:
        return (
            f"{model} is right in {rows[0]['accuracy']:.0%} of {rows[0]['n']} clean questions.",
            "No perturbation was compared with them.",
        )
    worst = min(lost, key=lambda row: row["change"])
    said = f"{worst['perturbation']} at severity {worst['severity']}"
    before = worst["accuracy"] - worst["change"]
    first = (
        f"{model} is right in {before:.0%} of {worst['n']} clean {worst['family']}"
        f" questions, and in {worst['accuracy']:.0%} of them under {said}, which harms it most."
    )
    for row in comparison:
        key = ("family", "perturbation", "severity")
        if all(row[name] == worst[name] for name in key):
            second = others[0]
            return first, (
                f"{second} is right in {row[second]:.0%} there, a difference of {row['difference']:+.0%}"
                f" (95 % interval {row['difference_low']:+.0%} to {row['difference_high']:+.0%},"
                f" p {_compared(row['p'])})."
            )
    share = worst["share_text"]
    decides = "" if share is None else f", and the text does {share:.0%} of what decides its answers there"
    return first, f"{worst['harmful_flip']:.0%} of its answers turn from right to wrong{decides}."


def radar(
    model: str, rows: Sequence[Mapping[str, Any]], same: Mapping[str, float | int] | None
) -> dict[str, float]:
    """The figures of one model that are known, each in [0, 1], more is better. same: its consistency."""
    own = [row for row in rows if row["model"] == model]
    clean = [row for row in own if row["perturbation"] == CLEAN]
    harm = [row for row in own if row["severity"] == FULL and REGISTRY[row["perturbation"]].role != "control"]
    values = {
        "right when clean": _weighted(clean, "accuracy"),
        "right when disturbed": _weighted(harm, "accuracy"),
        "not turned wrong": _less(_weighted(harm, "harmful_flip")),
        "options unmoved": _less(_weighted(harm, "js")),
        "same fact, same answer": None if same is None else float(same["same"]),
        "any order": _less(_weighted([row for row in own if row["order_flip"] is not None], "order_flip")),
    }
    return {name: value for name, value in values.items() if value is not None}


def worst_of(model: str, found: Sequence[Found]) -> list[dict[str, Any]]:
    """The answers that a perturbation turned from right to wrong, those that moved furthest first."""
    clean = {f.variant.item.id: f for f in found if f.variant.perturbation == CLEAN}
    turned = [
        (clean[f.variant.item.id], f)
        for f in found
        if f.variant.perturbation != CLEAN
        and f.variant.item.id in clean
        and direction(clean[f.variant.item.id].answered, f.answered) == "harmful"
    ]
    shown = [(_moved(before, after), before, after) for before, after in turned]
    shown.sort(key=lambda each: -(each[0] or 0.0))
    return [
        {
            "model": model,
            "id": after.variant.item.id,
            "perturbation": after.variant.perturbation,
            "severity": after.variant.severity,
            "context": after.variant.item.context,
            "question": asked(after.variant.item),
            "truth": after.variant.item.answer,
            "clean_answer": before.text,
            "answer": after.text,
            "js": js,
            "image": _thumbnail(after),
        }
        for js, before, after in shown[:WORST]
    ]


def _moved(before: Found, after: Found) -> float | None:
    return js_divergence(before.options, after.options) if before.options and after.options else None


def _thumbnail(found: Found) -> str | None:
    image = found.variant.whole().image
    if image is None:
        return None
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return png_data_url(small)


def _methods(found: Mapping[str, Sequence[Found]]) -> list[str]:
    said = []
    for model, own in found.items():
        if any(each.method == "regenerated" for each in own):
            said.append(
                f"{model} gave no log-probabilities: views were generated again and compared by their words,"
                " without influences and divergences."
            )
        if skipped := sum(each.skip is not None for each in own):
            said.append(
                f"{skipped} of {len(own)} answers of {model} were empty, refusals or of another kind: they"
                " count as wrong."
            )
    return said


def _weighted(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [(row[name], row["n"]) for row in rows if row[name] is not None]
    return sum(value * n for value, n in known) / sum(n for _, n in known) if known else None


def _less(value: float | None) -> float | None:
    return None if value is None else 1.0 - value


# -- as files -----------------------------------------------------------------------------------------


def as_json(record: Mapping[str, Any], made: Diagnosis) -> JSON:
    """Rows with what made them, and all else of the report; of the worst answers no pictures."""
    return {
        **record,
        "data": made.data,
        "models": list(made.models),
        "finding": list(made.finding),
        "doses": list(made.doses),
        "comparison": list(made.comparison),
        "consistency": list(made.consistency),
        "radar": {model: dict(values) for model, values in made.radar.items()},
        "worst": [{key: value for key, value in each.items() if key != "image"} for each in made.worst],
        "notes": list(made.notes),
    }


def markdown(record: Mapping[str, Any], made: Diagnosis) -> str:
    """The same as tables; of the worst answers no pictures and no contexts."""
    parts = [f"# {_title(made)}", " ".join(made.finding), f"Made by `{record['command']}`."]
    axes = _axes(made)
    for each in (
        Table("At a glance", [{"model": m, **{a: v.get(a) for a in axes}} for m, v in made.radar.items()]),
        Table("By perturbation", made.rows),
        *_further(made),
        Table(TURNED, [_in_a_row(worst) for worst in made.worst]),
    ):
        if each.rows:
            parts += [f"## {each.heading}", table(each.rows), *[each.note] * bool(each.note)]
    parts += ["## Limits", "\n".join(f"- {note}" for note in made.notes) + "\n"]
    return "\n\n".join(parts)


def _further(made: Diagnosis) -> tuple[Table, ...]:
    """The tables after the first; some may be empty."""
    return (
        Table(
            "Side by side",
            made.comparison,
            "difference: the second model's accuracy less the first's, with its paired 95 % interval; p:"
            " McNemar's exact test.",
            ("family",),
        ),
        Table(
            "Same fact, same answer",
            made.consistency,
            "Of n image-heavy items the clean answer, beside that to a true caption under a neutral picture:"
            " the share where both say the same, and where both are right.",
        ),
        Table(
            "Dose and response",
            made.doses,
            "area: the mean accuracy lost from dose 0 to 1; slope: the accuracy lost a unit of dose.",
            ("model", "family"),
        ),
    )


def _axes(made: Diagnosis) -> list[str]:
    return list(dict.fromkeys(name for values in made.radar.values() for name in values))


def _in_a_row(worst: Mapping[str, Any]) -> dict[str, Any]:
    """One of the worst answers for a Markdown table, the texts of the data on one line each."""
    said = {name: _one_line(worst[name]) for name in ("id", "question", "truth", "clean_answer", "answer")}
    return {
        **{name: worst[name] for name in ("model", "perturbation", "severity")},
        **said,
        "js": worst["js"],
    }


def _one_line(text: str) -> str:
    """A text cut short, without a mark that Markdown would take for its own."""
    return re.sub(r"([\\`*|<>\[\]&])", r"\\\1", cut(" ".join(text.split()), CELL_CHARACTERS))


def html(record: Mapping[str, Any], made: Diagnosis) -> str:
    """One page: style, figures and pictures inside; texts escaped. Needs jinja2."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("modint_guard.evaluation"), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    axes = _axes(made)
    return environment.get_template("report.html.jinja").render(
        title=_title(made),
        made=made,
        record=record,
        further=_further(made),
        turned=TURNED,
        heat=HEAT,
        axes=[(name, *point(index, len(axes), 1.0)) for index, name in enumerate(axes)],
        rings=[polygon([share] * len(axes)) for share in (0.25, 0.5, 0.75, 1.0)],
        shapes={
            model: polygon([values.get(name, 0.0) for name in axes]) for model, values in made.radar.items()
        },
        cut=partial(cut, most=CARD_CHARACTERS),
        shown=shown,
        badness=badness,
        probability=probability,
        breakable=lambda name: escape(name).replace("_", Markup("_<wbr>")),
    )


def _title(made: Diagnosis) -> str:
    return f"Diagnosis of {' and '.join(made.models)} on {made.data}"


def point(index: int, count: int, value: float) -> tuple[float, float]:
    """Where a value in [0, 1] lies on axis `index` of `count`, clockwise from the top."""
    angle = 2 * math.pi * index / count
    x, y = RADIUS * value * math.sin(angle), -RADIUS * value * math.cos(angle)
    return round(x, 1) + 0.0, round(y, 1) + 0.0  # no -0


def polygon(values: Sequence[float]) -> str:
    """The points of an SVG polygon, one an axis."""
    corners = (point(index, len(values), value) for index, value in enumerate(values))
    return " ".join(f"{x:g},{y:g}" for x, y in corners)


def cut(text: str, most: int) -> str:
    """A text of at most so many characters, with a mark where it goes on."""
    return text if len(text) <= most else text[: most - 2] + " …"


def badness(name: str, value: float | None) -> int:
    """How red a cell of the heat map is, in percent: more where less is right or more has moved."""
    if value is None or name not in ("accuracy", "harmful_flip", "js"):
        return 0
    return round(100 * min(1.0, max(0.0, 1.0 - value if name == "accuracy" else value)))


def probability(p: float) -> str:
    """A p-value; far below what anybody would ask for it is named by its bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _compared(p: float) -> str:
    said = probability(p)
    return said if said.startswith("<") else f"= {said}"


def shown(value: object) -> str:
    """One value of a table: a share as percent, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, float):  # of a share that is lost, so much below 0 says only that little was right
        return "< −100%" if value < -1.0 else f"{value:z.1%}".replace("-", "−")
    return str(value)
