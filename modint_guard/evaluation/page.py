"""A diagnosis as files: `report.json`, `report.md`, and one HTML page that needs no network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from modint_guard.evaluation.diagnosis import Diagnosis, probability
from modint_guard.evaluation.results import ResultRow, recorded, table
from modint_guard.showing.notebook import highlight
from modint_guard.showing.pieces import shown as shown_answer
from modint_guard.types import JSON

TURNED = "Answers that turned wrong, the furthest moved first"  # their heading
COLOURED = "What gave the words of some answers, flagged ones first"
CELL_CHARACTERS = 200  # of a text in a Markdown table
CARD_CHARACTERS = 500  # of a text on the page
RADIUS = 100.0  # of the radar, in its own units
HEAT = ("accuracy", "harmful_flip", "js", "perceptual_image", "perceptual_text", "text_preference")


@dataclass(frozen=True)
class Table:
    """Rows with a heading and what their columns mean; the page shows those that are alike `by` these columns
    under one line that names them.
    """

    heading: str
    rows: Sequence[ResultRow]
    note: str = ""
    by: tuple[str, ...] = ()


def write_report(folder: Path, diagnosis: Diagnosis, *, command: str, seed: int) -> list[Path]:
    """Write the three files of a diagnosis into `folder`; gives their paths."""
    record = recorded(command, [seed], diagnosis.rows)
    return write_files(
        folder, as_json(record, diagnosis), markdown(record, diagnosis), lambda: html(record, diagnosis)
    )


def write_files(folder: Path, document: JSON, text: str, page: Callable[[], str]) -> list[Path]:
    """Write `report.json`, `report.md` and, with jinja2 installed, `report.html`; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "report.json", folder / "report.md"]
    files[0].write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    files[1].write_text(text, "utf-8")
    if find_spec("jinja2") is not None:
        files.append(folder / "report.html")
        files[2].write_text(page(), "utf-8")
    return files


def as_json(record: JSON, diagnosis: Diagnosis) -> JSON:
    """Rows with what made them, and all else of the report; of the worst answers no pictures."""
    return {
        **record,
        "data": diagnosis.data,
        "models": list(diagnosis.models),
        "finding": list(diagnosis.finding),
        "kinds": list(diagnosis.kinds),
        "doses": list(diagnosis.doses),
        "comparison": list(diagnosis.comparison),
        "consistency": list(diagnosis.consistency),
        "radar": {model: dict(values) for model, values in diagnosis.radar.items()},
        "worst": [_without_picture(card) for card in diagnosis.worst],
        "coloured": [_without_picture(card) for card in diagnosis.coloured],
        "notes": list(diagnosis.notes),
    }


def markdown(record: JSON, diagnosis: Diagnosis) -> str:
    """The same as tables; of the worst answers no pictures and no contexts."""
    parts = [f"# {_title(diagnosis)}", " ".join(diagnosis.finding), f"Made by `{record['command']}`."]
    axes = _axes(diagnosis)
    radar = [{"model": m, **{axis: v.get(axis) for axis in axes}} for m, v in diagnosis.radar.items()]
    for each in (
        _kinds(diagnosis),
        Table("At a glance", radar),
        Table("By perturbation", diagnosis.rows),
        *_further(diagnosis),
        Table(TURNED, [_in_a_row(card) for card in diagnosis.worst]),
        Table(COLOURED, [_by_words(card) for card in diagnosis.coloured]),
    ):
        if each.rows:
            parts += [f"## {each.heading}", table(each.rows), *[each.note] * bool(each.note)]
    parts += ["## Limits", "\n".join(f"- {note}" for note in diagnosis.notes) + "\n"]
    return "\n\n".join(parts)


def _kinds(diagnosis: Diagnosis) -> Table:
    """The check-up's first table; empty if another data set was asked."""
    return Table(
        "By kind and condition",
        diagnosis.kinds,
        "right: answers that state the truth, with the exact 95 % interval of their share; says lie: those"
        " that state what the caption claims or the picture shows.",
        ("model", "kind"),
    )


def _further(diagnosis: Diagnosis) -> tuple[Table, ...]:
    """The tables after the first; some may be empty."""
    return (
        Table(
            "Side by side",
            diagnosis.comparison,
            "difference: the second model's accuracy less the first's, with its paired 95 % interval; p:"
            " McNemar's exact test.",
            ("family",),
        ),
        Table(
            "Same fact, same answer",
            diagnosis.consistency,
            "Of n image-heavy items the clean answer, beside that to a true caption under a neutral picture:"
            " the share for which both say the same, and for which both are right.",
        ),
        Table(
            "Dose and response",
            diagnosis.doses,
            "area: the mean accuracy lost from dose 0 to 1; slope: the accuracy lost a unit of dose.",
            ("model", "family"),
        ),
    )


def _axes(diagnosis: Diagnosis) -> list[str]:
    return list(dict.fromkeys(name for values in diagnosis.radar.values() for name in values))


def _in_a_row(card: ResultRow) -> ResultRow:
    """One of the worst answers for a Markdown table, the texts of the data on one line each."""
    texts = {name: _one_line(card[name]) for name in ("id", "question", "truth", "clean_answer", "answer")}
    return {**{name: card[name] for name in ("model", "perturbation", "severity")}, **texts, "js": card["js"]}


def _by_words(card: ResultRow) -> ResultRow:
    """One of the answers that are shown in colours for a Markdown table, without them."""
    answer = shown_answer(card["judged"])
    said = "".join(piece.text for text in answer.texts for piece in text)
    texts = {
        "question": card["question"],
        "truth": card["truth"],
        "answer": said,
        "from the text": " · ".join(answer.given_by("text")),
        "from the picture": " · ".join(answer.given_by("image")),
        "flagged": " · ".join(answer.flagged),
    }
    return {
        **{name: card[name] for name in ("model", "perturbation", "severity")},
        "id": _one_line(card["id"]),
        **{name: _one_line(text) for name, text in texts.items()},
    }


def _without_picture(card: ResultRow) -> JSON:
    return {key: value for key, value in card.items() if key != "image"}


def _one_line(text: str) -> str:
    """A text cut short, without a mark that Markdown would take for its own."""
    return re.sub(r"([\\`*|<>\[\]&])", r"\\\1", cut(" ".join(text.split()), CELL_CHARACTERS))


def html(record: JSON, diagnosis: Diagnosis) -> str:
    """One page: style, figures and pictures inside; texts escaped. Needs jinja2."""
    from markupsafe import Markup

    axes = _axes(diagnosis)
    return rendered(
        "page.html.jinja",
        title=_title(diagnosis),
        diagnosis=diagnosis,
        record=record,
        columns=_columns(diagnosis),
        kinds=_kinds(diagnosis),
        further=_further(diagnosis),
        turned=TURNED,
        coloured=COLOURED,
        in_colours=lambda card: Markup(highlight(card["judged"])._repr_html_()),
        heat=HEAT,
        axes=[(name, *point(index, len(axes), 1.0)) for index, name in enumerate(axes)],
        rings=[polygon([share] * len(axes)) for share in (0.25, 0.5, 0.75, 1.0)],
        shapes={
            model: polygon([values.get(name, 0.0) for name in axes])
            for model, values in diagnosis.radar.items()
        },
        cut=partial(cut, most=CARD_CHARACTERS),
        badness=badness,
        probability=probability,
    )


def rendered(template: str, *, package: str = "modint_guard.evaluation", **values: object) -> str:
    """A page from a template of a package, which may extend `base.html.jinja` of this one; `title` and
    `record` are among the values. Texts are escaped. Needs jinja2.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    loaders = [PackageLoader(name) for name in dict.fromkeys((package, "modint_guard.evaluation"))]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template(template).render(
        **values, shown=shown, breakable=lambda name: escape(name).replace("_", Markup("_<wbr>"))
    )


def _columns(diagnosis: Diagnosis) -> list[str]:
    """Those of the page's table by perturbation; whether the wording is held out only if some is, and only
    what is known of some row.
    """
    reworded = any(row["held_out"] == "wording" for row in diagnosis.rows)
    known = [name for name in HEAT if any(row[name] is not None for row in diagnosis.rows)]
    return ["perturbation", *["held_out"] * reworded, "severity", "n", *known]


def _title(diagnosis: Diagnosis) -> str:
    return f"Diagnosis of {' and '.join(diagnosis.models)} on {diagnosis.data}"


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
    """A text of at most so many characters, with a mark if it goes on."""
    return text if len(text) <= most else text[: most - 2] + " …"


def badness(name: str, value: float | None) -> int:
    """How red a cell of the heat map is, in percent: more if less is right or more has moved."""
    if value is None or name not in ("accuracy", "harmful_flip", "js"):
        return 0
    return round(100 * min(1.0, max(0.0, 1.0 - value if name == "accuracy" else value)))


def shown(value: object) -> str:
    """One value of a table: a share as percent, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, float):  # of a share that is lost, so much below 0 says only that little was right
        return "< −100%" if value < -1.0 else f"{value:z.1%}".replace("-", "−")
    return str(value)
