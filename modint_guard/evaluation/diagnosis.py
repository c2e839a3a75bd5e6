"""All that a report says of one or two models, as plain records: finding, tables, radar, worst answers.

Bounded whatever the number of items: figures are over all of them, and at most WORST answers are kept, and
of each model those that are shown in colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from modint_guard.chat.images import png_data_url
from modint_guard.data.item import question_text
from modint_guard.data.perturb import CLEAN, REGISTRY
from modint_guard.data.severity import FULL
from modint_guard.evaluation.checkup_verdict import NOTES, checkup_finding, kind_rows
from modint_guard.evaluation.effects import direction
from modint_guard.evaluation.results import ResultRow
from modint_guard.evaluation.tables import (
    Answer,
    clean_answers,
    compared,
    consistency,
    dose_response,
    rows_of,
)
from modint_guard.evaluation.variants import CONDITION
from modint_guard.judging.divergence import js_divergence
from modint_guard.types import State

WORST = 24  # answers shown with their pictures
THUMBNAIL = 192  # pixels, the longer side
LIMITS = (
    "Figures are of the items asked and of nothing else: another data set, wording or prompt may differ.",
    "Answers were asked greedily, once; an engine's own noise is not taken out.",
    "Divergences are over the options if the model lists them all, else lower bounds of top-k lists.",
    "Intervals are 95 %, clustered by source; many rows were looked at, no p-value is corrected for that.",
)


@dataclass(frozen=True)
class Diagnosis:
    """Everything a report says."""

    data: str
    models: tuple[str, ...]
    finding: tuple[str, ...]
    kinds: Sequence[ResultRow]
    rows: Sequence[ResultRow]
    doses: Sequence[ResultRow]
    comparison: Sequence[ResultRow]
    consistency: Sequence[ResultRow]
    radar: Mapping[str, Mapping[str, float]]
    worst: Sequence[ResultRow]
    coloured: Sequence[ResultRow]
    notes: Sequence[str]


def diagnosis_of(
    answers: Mapping[str, Sequence[Answer]], *, data: str, is_checkup: bool = False
) -> Diagnosis:
    """All tables and figures, from the answers of one or two models, by the model's name.

    is_checkup: whether they are answers to the check-up, of which finding and `kinds` then speak.
    """
    models = tuple(answers)
    rows = [row for model, of_model in answers.items() for row in rows_of(model, of_model)]
    comparison = [
        row for pair in combinations(models, 2) for row in compared(pair, answers[pair[0]], answers[pair[1]])
    ]
    same = {model: known for model, of_model in answers.items() if (known := consistency(of_model))}
    worst = [card for model, of_model in answers.items() for card in worst_of(model, of_model)]
    worst.sort(key=lambda card: -(card["js"] or 0.0))
    return Diagnosis(
        data=data,
        models=models,
        finding=_checkup_finding(answers) if is_checkup else finding(models, rows, comparison),
        kinds=[row for each in answers.items() for row in kind_rows(*each)] if is_checkup else [],
        rows=rows,
        doses=list(dose_response(rows)),
        comparison=comparison,
        consistency=[{"model": model, **known} for model, known in same.items()],
        radar={model: radar(model, rows, same.get(model)) for model in models},
        worst=worst[:WORST],
        coloured=sorted(
            (card for model, of_model in answers.items() for card in coloured_of(model, of_model)),
            key=lambda card: card["judged"]["modint"]["verdict"] != State.FLAGGED,
        ),
        notes=(*(NOTES if is_checkup else ()), *LIMITS, *_notes(answers)),
    )


def _checkup_finding(answers: Mapping[str, Sequence[Answer]]) -> tuple[str, ...]:
    """Three sentences a model."""
    return tuple(sentence for each in answers.items() for sentence in checkup_finding(*each))


def finding(
    models: Sequence[str], rows: Sequence[ResultRow], comparison: Sequence[ResultRow]
) -> tuple[str, str]:
    """Two sentences: what the first model loses to which perturbation, and what decides there, or how the
    second model does under the same.
    """
    model, *others = models
    disturbed = [row for row in rows if row["model"] == model and row["change"] is not None]
    if not disturbed:
        return (
            f"{model} is right in {rows[0]['accuracy']:.0%} of {rows[0]['n']} clean questions.",
            "No perturbation was compared with them.",
        )
    worst = min(disturbed, key=lambda row: float(row["change"]))
    wording = " in held-out wordings" if worst["held_out"] == "wording" else ""
    first = (
        f"{model} is right in {worst['accuracy'] - worst['change']:.0%} of {worst['n']} clean"
        f" {worst['family']} questions{wording}, and in {worst['accuracy']:.0%} of them under"
        f" {worst['perturbation']} at severity {worst['severity']}, which harms it most."
    )
    for row in comparison:
        if all(row[name] == worst[name] for name in CONDITION):
            return first, _comparing(others[0], row)
    share = worst["share_text"]
    decides = "" if share is None else f", and the text does {share:.0%} of what decides its answers there"
    return first, f"{worst['harmful_flip']:.0%} of its answers turn from right to wrong{decides}."


def _comparing(second: str, row: ResultRow) -> str:
    p = probability(row["p"])
    return (
        f"{second} is right in {row[second]:.0%} there, a difference of {row['difference']:+.0%}"
        f" (95 % interval {row['difference_low']:+.0%} to {row['difference_high']:+.0%},"
        f" p {p if p.startswith('<') else f'= {p}'})."
    )


def probability(p: float) -> str:
    """A p-value; far below what anybody would ask for it is named by its bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def radar(model: str, rows: Sequence[ResultRow], same: Mapping[str, float | int] | None) -> dict[str, float]:
    """The figures of one model that are known, each in [0, 1], more is better. same: its consistency."""
    of_model = [row for row in rows if row["model"] == model]
    clean = [row for row in of_model if row["perturbation"] == CLEAN]
    harm = [
        row for row in of_model if row["severity"] == FULL and REGISTRY[row["perturbation"]].role != "control"
    ]
    values = {
        "right when clean": _weighted(clean, "accuracy"),
        "right when disturbed": _weighted(harm, "accuracy"),
        "not turned wrong": _less(_weighted(harm, "harmful_flip")),
        "options unmoved": _less(_weighted(harm, "js")),
        "same fact, same answer": None if same is None else float(same["same"]),
        "any order": _less(_weighted(of_model, "order_flip")),
    }
    return {name: value for name, value in values.items() if value is not None}


def _weighted(rows: Sequence[ResultRow], name: str) -> float | None:
    """The mean of a column over all items of the rows that know it."""
    known = [(row[name], row["n"]) for row in rows if row[name] is not None]
    return sum(value * n for value, n in known) / sum(n for _, n in known) if known else None


def _less(value: float | None) -> float | None:
    return None if value is None else 1.0 - value


def coloured_of(model: str, answers: Sequence[Answer]) -> list[ResultRow]:
    """The answers that have a verdict, to be shown with their words coloured by what gave them."""
    return [
        {
            "model": model,
            "id": each.variant.item.id,
            "perturbation": each.variant.perturbation,
            "severity": each.variant.severity,
            "context": each.variant.item.context,
            "question": question_text(each.variant.item),
            "truth": each.variant.item.answer,
            "judged": each.judged,
            "image": _thumbnail(each),
        }
        for each in answers
        if each.judged is not None and each.judged["modint"]["verdict"] in (State.PASS, State.FLAGGED)
    ]


def worst_of(model: str, answers: Sequence[Answer]) -> list[ResultRow]:
    """The answers that a perturbation turned from right to wrong, those that moved furthest first."""
    clean = clean_answers(answers)
    turned = [
        (before, after)
        for after in answers
        if after.variant.perturbation != CLEAN
        and (before := clean.get(after.variant.item.id))
        and direction(before.answered, after.answered) == "harmful"
    ]
    moved = [(_moved(before, after), before, after) for before, after in turned]
    moved.sort(key=lambda each: -(each[0] or 0.0))
    return [
        {
            "model": model,
            "id": after.variant.item.id,
            "perturbation": after.variant.perturbation,
            "severity": after.variant.severity,
            "context": after.variant.item.context,
            "question": question_text(after.variant.item),
            "truth": after.variant.item.answer,
            "clean_answer": before.text,
            "answer": after.text,
            "js": js,
            "image": _thumbnail(after),
        }
        for js, before, after in moved[:WORST]
    ]


def _moved(before: Answer, after: Answer) -> float | None:
    return js_divergence(before.options, after.options) if before.options and after.options else None


def _thumbnail(answer: Answer) -> str | None:
    image = answer.variant.whole().image
    if image is None:
        return None
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return png_data_url(small)


def _notes(answers: Mapping[str, Sequence[Answer]]) -> list[str]:
    """What must be known of how these answers were compared."""
    notes = []
    for model, of_model in answers.items():
        if any(answer.method == "regenerated" for answer in of_model):
            notes.append(
                f"{model} gave no log-probabilities: views were generated again and compared by their words,"
                " without influences and divergences."
            )
        if skipped := sum(answer.skip is not None for answer in of_model):
            notes.append(
                f"{skipped} of {len(of_model)} answers of {model} were empty, refusals or of another kind:"
                " they count as wrong."
            )
    return notes
