"""Tables of a model's answers: accuracy and effects by condition, what each modality did, doses, two models.

Pure. Cells are those of the guard: the same request without its context, with a neutral picture, and with
neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from modint_guard.data.item import choice_of, is_right
from modint_guard.data.perturb import CLEAN, REGISTRY
from modint_guard.data.severity import FULL
from modint_guard.evaluation.effects import EFFECTS, Answered, direction, effect, shares, sources
from modint_guard.evaluation.results import ResultRow
from modint_guard.evaluation.statistics import mcnemar, mean, paired_interval
from modint_guard.evaluation.variants import CONDITION, Condition, Variant
from modint_guard.judging.scoring import shapley
from modint_guard.types import JSON, NEUTRAL_IMAGE, NO_CONTEXT, PRIOR

LIES = ("misleading_description", "contradicting_image")


@dataclass(frozen=True)
class Answer:
    """What a model answered to one variant. `options` are probabilities by choice, `top` the
    log-probabilities of the first token's alternatives, `cells` the answers of the views by name, `influence`
    Shapley values of text and image in nats and their synergy; `reordered` says whether another order of the
    options, or of question and context, moved the answer. None or empty if it is not known. judged: of a few
    answers a completion with its `modint` object (`evaluation.coloured`).
    """

    variant: Variant
    text: str
    options: Mapping[str, float] | None = None
    top: Mapping[str, float] | None = None
    cells: Mapping[str, str] = field(default_factory=dict)
    influence: Mapping[str, float | None] = field(default_factory=dict)
    reordered: bool | None = None
    method: str = "first_token"
    skip: str | None = None
    judged: JSON | None = None

    @classmethod
    def from_json(cls, variant: Variant, record: JSON) -> Answer:
        """From a journal's record."""
        return cls(variant, **record)

    @property
    def answered(self) -> Answered:
        """As effects are computed."""
        return Answered(self.variant.item, self.text, self.options, self.top)

    @property
    def right(self) -> bool:
        """Whether it states the truth."""
        return self.answered.right

    def right_in(self, cell: str) -> bool | None:
        """Whether the answer of a view states the truth; None if it was not asked."""
        return is_right(self.variant.item, self.cells[cell]) if cell in self.cells else None


def clean_answers(answers: Sequence[Answer]) -> dict[str, Answer]:
    """The answers to clean items, by the item's id."""
    return {a.variant.item.id: a for a in answers if a.variant.perturbation == CLEAN}


def by_condition(answers: Sequence[Answer]) -> dict[Condition, list[Answer]]:
    """The answers of each condition, in the order in which these first occur."""
    groups: dict[Condition, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.variant.condition, []).append(answer)
    return groups


def rows_of(model: str, answers: Sequence[Answer]) -> Iterator[ResultRow]:
    """A row for each condition: accuracy, effect against the clean answers to the same items, and what each
    modality did. Rows without clean answers to compare with have no effect.
    """
    clean = clean_answers(answers)
    for condition, group in by_condition(answers).items():
        before = [clean[a.variant.item.id] for a in group if a.variant.item.id in clean]
        effects: dict[str, float | None] = dict.fromkeys(EFFECTS)
        if group[0].variant.perturbation != CLEAN and len(before) == len(group):
            effects |= effect([a.answered for a in before], [a.answered for a in group])
        yield {
            "model": model,
            **dict(zip(CONDITION, condition, strict=True)),
            **shares([a.answered for a in group]),
            **effects,
            **modalities(group),
        }


def modalities(group: Sequence[Answer]) -> dict[str, float | None]:
    """What each modality did for these answers, means over those for which it is known.

    influence_*: Shapley values of log p(answer), nats; share_text: |text| / (|text| + |image|) of their
    means. perceptual_*: the accuracy that is lost without the modality, of the accuracy with it (Gat et al.
    2021). shapley_*: Shapley values of the accuracy; interaction: what both do to it beyond each alone.
    text_preference: of answers that follow either side of a conflict, the share that follows the text.
    order_flip: the share of answers that another order moves, of the options if clean, of question and
    context if both modalities say the same.
    """
    influence = {
        name: _mean_known([a.influence.get(name) for a in group]) for name in ("text", "image", "synergy")
    }
    whole = [a for a in group if {NO_CONTEXT, NEUTRAL_IMAGE, PRIOR} <= a.cells.keys()]
    text, image, interaction = _shapley_of_accuracy(whole)
    return {
        "influence_text": influence["text"],
        "influence_image": influence["image"],
        "synergy": influence["synergy"],
        "share_text": _share(influence["text"], influence["image"]),
        "perceptual_text": perceptual(group, NO_CONTEXT),
        "perceptual_image": perceptual(group, NEUTRAL_IMAGE),
        "shapley_text": text,
        "shapley_image": image,
        "interaction": interaction,
        "text_preference": text_preference(group),
        "order_flip": _mean_known([None if a.reordered is None else float(a.reordered) for a in group]),
    }


def perceptual(group: Sequence[Answer], cell: str) -> float | None:
    """(accuracy - accuracy under the view) / accuracy, of the answers that have the view; at most 1, below 0
    if the modality does harm. None if nothing is right.
    """
    known = [(a.right, a.right_in(cell)) for a in group if cell in a.cells]
    right = sum(answer for answer, _ in known)
    return None if not right else (right - sum(bool(view) for _, view in known)) / right


def _shapley_of_accuracy(whole: Sequence[Answer]) -> tuple[float | None, float | None, float | None]:
    """Text, image and interaction of the game whose value is the accuracy."""
    if not whole:
        return None, None, None

    def accuracy(cell: str) -> float:
        return sum(bool(a.right_in(cell)) for a in whole) / len(whole)

    both = sum(a.right for a in whole) / len(whole)
    text, image = accuracy(NEUTRAL_IMAGE), accuracy(NO_CONTEXT)  # what each alone comes to
    values = shapley(both, first=text, second=image, neither=accuracy(PRIOR))
    return values.text, values.image, values.synergy


def text_preference(group: Sequence[Answer]) -> float | None:
    """Of answers to a lie that state the truth or the lie, the share that states what the text says; in
    [0, 1], None if there is no conflict.
    """
    followed = [
        (choice == a.variant.item.wrong) == (REGISTRY[a.variant.perturbation].modality == "text")
        for a in group
        if a.variant.perturbation in LIES
        and (choice := choice_of(a.variant.item, a.text)) in (a.variant.item.answer, a.variant.item.wrong)
    ]
    return mean(followed)


def consistency(answers: Sequence[Answer]) -> dict[str, float | int] | None:
    """Whether the same fact gets the same answer as a picture and as text: of image-heavy items the clean
    answer, and the one to a true description under a neutral picture. `n` items, the share `same`, and
    `both_right`; None if there are none.
    """
    clean = clean_answers(answers)
    pairs = [
        (clean[a.variant.item.id], a.cells[NEUTRAL_IMAGE])
        for a in answers
        if a.variant.perturbation == "true_description"
        and a.variant.severity == FULL
        and NEUTRAL_IMAGE in a.cells
        and a.variant.item.id in clean
    ]
    if not pairs:
        return None
    told = [Answered(shown.variant.item, text) for shown, text in pairs]
    same = [direction(shown.answered, text) == "none" for (shown, _), text in zip(pairs, told, strict=True)]
    right = [shown.right and text.right for (shown, _), text in zip(pairs, told, strict=True)]
    return {"n": len(pairs), "same": sum(same) / len(pairs), "both_right": sum(right) / len(pairs)}


def dose_response(rows: Sequence[ResultRow]) -> Iterator[ResultRow]:
    """For every perturbation of a model, family and wording that was asked at two severities or more: `area`,
    the mean accuracy lost over the doses from 0 to 1 (trapezoids, 0 at dose 0), and `slope`, the accuracy
    lost a unit of dose (least squares through the origin).
    """
    names = ("model", *(name for name in CONDITION if name != "severity"))
    dosed = [row for row in rows if row["severity"] and row["change"] is not None]
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in dosed):
        doses = [row for row in dosed if tuple(row[name] for name in names) == key]
        if len(doses) > 1:
            yield {**dict(zip(names, key, strict=True)), "severities": len(doses), **_response(doses)}


def _response(rows: Sequence[ResultRow]) -> dict[str, float]:
    ordered = sorted(rows, key=lambda row: int(row["severity"]))
    doses = np.array([0.0, *(row["severity"] / FULL for row in ordered)])
    lost = np.array([0.0, *(-row["change"] for row in ordered)])
    area = float(np.sum(np.diff(doses) * (lost[1:] + lost[:-1]) / 2) / doses[-1])
    return {"area": area, "slope": float(doses @ lost / (doses @ doses))}


def compared(
    names: tuple[str, str], first: Sequence[Answer], second: Sequence[Answer]
) -> Iterator[ResultRow]:
    """A row for each condition of two models on the same variants: the difference of their accuracies
    (second - first) with its paired 95 % interval, and McNemar's exact test. Raises ValueError if the
    variants differ.
    """
    if [a.variant.key for a in first] != [a.variant.key for a in second]:
        raise ValueError("two models are compared on the same variants, in the same order")
    others = by_condition(second)
    for condition, group in by_condition(first).items():
        before, after = [a.right for a in group], [a.right for a in others[condition]]
        low, high = paired_interval(before, after, sources([a.answered for a in group]))
        test = mcnemar(before, after)
        yield {
            **dict(zip(CONDITION, condition, strict=True)),
            "n": len(group),
            names[0]: sum(before) / len(group),
            names[1]: sum(after) / len(group),
            "difference": (sum(after) - sum(before)) / len(group),
            "difference_low": low,
            "difference_high": high,
            "only_first_right": test.only_first,
            "only_second_right": test.only_second,
            "p": test.p,
        }


def _share(text: float | None, image: float | None) -> float | None:
    if text is None or image is None or not (text or image):
        return None
    return abs(text) / (abs(text) + abs(image))


def _mean_known(values: Sequence[float | None]) -> float | None:
    return mean(value for value in values if value is not None)
