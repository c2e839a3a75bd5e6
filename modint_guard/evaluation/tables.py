"""What the answers of a model say of it: tables by perturbation and severity, and figures over them. Pure.

Cells are those of the guard: the same request without its context, with a neutral picture, and with neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modint_guard.data.item import Item, choice_of, is_right
from modint_guard.data.perturb import CLEAN, REGISTRY, perturb
from modint_guard.data.severity import FULL, at_severity
from modint_guard.evaluation.effects import EFFECTS, Answered, direction, effect, shares, sources
from modint_guard.evaluation.statistics import mcnemar, mean, paired_interval
from modint_guard.judging.scoring import shapley
from modint_guard.types import JSON, NEUTRAL_IMAGE, NO_CONTEXT, PRIOR

LIES = ("misleading_description", "contradicting_image")


@dataclass(frozen=True)
class Variant:
    """An item clean or under a perturbation at a severity (0 where clean).

    With a `base` the picture is left out of `item` and made anew from it when it is wanted: thousands of
    perturbed pictures need not be held.
    """

    item: Item
    perturbation: str
    severity: int
    base: Item | None = None
    seed: int = 0

    def whole(self) -> Item:
        """The item as it is asked, with its picture."""
        if self.base is None:
            return self.item
        disturbed = perturb(self.base, self.perturbation, seed=self.seed)
        return at_severity(disturbed, self.severity, seed=self.seed)

    @property
    def key(self) -> str:
        """Unlike any other variant's of the same data."""
        return f"{self.item.id}/{self.perturbation}/{self.severity}"


@dataclass(frozen=True)
class Found:
    """What a model answered to one variant. `options` are probabilities by choice, `top` the
    log-probabilities of the first token's alternatives, `cells` the answers of the views by name, `influence`
    Shapley values of text and image in nats and their synergy; `reordered` says whether another order of the
    options, or of question and context, moved the answer. None or empty where it is not known.
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

    @classmethod
    def from_json(cls, variant: Variant, record: JSON) -> Found:
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
        """Whether the answer of a view states the truth; None where it was not asked."""
        return is_right(self.variant.item, self.cells[cell]) if cell in self.cells else None


def table(model: str, found: Sequence[Found]) -> Iterator[dict[str, Any]]:
    """A row a family, perturbation and severity: accuracy, effect against the clean answers of the same
    items, and what each modality did. Rows without clean answers to compare with have no effect.
    """
    clean = {f.variant.item.id: f for f in found if f.variant.perturbation == CLEAN}
    for key in dict.fromkeys(_key(f) for f in found):
        group = [f for f in found if _key(f) == key]
        before = [clean[f.variant.item.id] for f in group if f.variant.item.id in clean]
        moved: dict[str, float | None] = dict.fromkeys(EFFECTS)
        if key[1] != CLEAN and len(before) == len(group):
            moved |= effect([f.answered for f in before], [f.answered for f in group])
        family, perturbation, severity = key
        yield {
            "model": model,
            "family": family,
            "perturbation": perturbation,
            "severity": severity,
            **shares([f.answered for f in group]),
            **moved,
            **modalities(group),
        }


def _key(found: Found) -> tuple[str, str, int]:
    variant = found.variant
    return variant.item.family, variant.perturbation, variant.severity


def modalities(group: Sequence[Found]) -> dict[str, float | None]:
    """What each modality did for these answers, means over those where it is known.

    influence_*: Shapley values of log p(answer), nats; share_text: |text| / (|text| + |image|) of their
    means. perceptual_*: the accuracy that is lost without the modality, of the accuracy with it (Gat et al.
    2021). shapley_*: Shapley values of the accuracy; interaction: what both do to it beyond each alone.
    text_preference: of answers that follow either side of a conflict, the share that follows the text.
    order_flip: the share of answers that another order moves, of the options where clean, of question and
    context where both modalities say the same.
    """
    influence = {
        name: _mean_known([f.influence.get(name) for f in group]) for name in ("text", "image", "synergy")
    }
    whole = [f for f in group if {NO_CONTEXT, NEUTRAL_IMAGE, PRIOR} <= f.cells.keys()]
    accuracy = _shapley_of_accuracy(whole)
    return {
        "influence_text": influence["text"],
        "influence_image": influence["image"],
        "synergy": influence["synergy"],
        "share_text": _share(influence["text"], influence["image"]),
        "perceptual_text": perceptual(group, NO_CONTEXT),
        "perceptual_image": perceptual(group, NEUTRAL_IMAGE),
        "shapley_text": accuracy[0],
        "shapley_image": accuracy[1],
        "interaction": accuracy[2],
        "text_preference": text_preference(group),
        "order_flip": _mean_known([None if f.reordered is None else float(f.reordered) for f in group]),
    }


def perceptual(group: Sequence[Found], cell: str) -> float | None:
    """(accuracy - accuracy under the view) / accuracy, of the answers that have the view; at most 1, below 0
    where the modality does harm. None where nothing is right.
    """
    known = [(f.right, f.right_in(cell)) for f in group if cell in f.cells]
    right = sum(own for own, _ in known)
    return None if not right else (right - sum(bool(view) for _, view in known)) / right


def _shapley_of_accuracy(whole: Sequence[Found]) -> tuple[float | None, float | None, float | None]:
    """Text, image and interaction of the game whose value is the accuracy."""
    if not whole:
        return None, None, None

    def accuracy(cell: str) -> float:
        return sum(bool(f.right_in(cell)) for f in whole) / len(whole)

    both = sum(f.right for f in whole) / len(whole)
    found = shapley(both, first=accuracy(NEUTRAL_IMAGE), second=accuracy(NO_CONTEXT), neither=accuracy(PRIOR))
    return found.text, found.image, found.synergy


def text_preference(group: Sequence[Found]) -> float | None:
    """Of answers to a lie that state the truth or the lie, the share that states what the text says; in
    [0, 1], None where there is no conflict.
    """
    followed = [
        (choice == f.variant.item.wrong) == (REGISTRY[f.variant.perturbation].modality == "text")
        for f in group
        if f.variant.perturbation in LIES
        and (choice := choice_of(f.variant.item, f.text)) in (f.variant.item.answer, f.variant.item.wrong)
    ]
    return mean(followed)


def consistency(found: Sequence[Found]) -> dict[str, float | int] | None:
    """Whether the same fact gets the same answer as a picture and as text: of image-heavy items the clean
    answer, and the one to a true description under a neutral picture. `n` items, the share `same`, and
    `both_right`; None where there are none.
    """
    seen = {f.variant.item.id: f for f in found if f.variant.perturbation == CLEAN}
    pairs = [
        (seen[f.variant.item.id], f.cells[NEUTRAL_IMAGE])
        for f in found
        if f.variant.perturbation == "true_description"
        and f.variant.severity == FULL
        and NEUTRAL_IMAGE in f.cells
        and f.variant.item.id in seen
    ]
    if not pairs:
        return None
    told = [Answered(shown.variant.item, text) for shown, text in pairs]
    same = [direction(shown.answered, text) == "none" for (shown, _), text in zip(pairs, told, strict=True)]
    right = [shown.right and text.right for (shown, _), text in zip(pairs, told, strict=True)]
    return {"n": len(pairs), "same": sum(same) / len(pairs), "both_right": sum(right) / len(pairs)}


def dose_response(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For every model, family and perturbation asked at two severities or more: `area`, the mean accuracy
    lost over the doses from 0 to 1 (trapezoids, 0 at dose 0), and `slope`, the accuracy lost a unit of dose
    (least squares through the origin).
    """
    known = [row for row in rows if row["severity"] and row["change"] is not None]
    for key in dict.fromkeys((row["model"], row["family"], row["perturbation"]) for row in known):
        own = [row for row in known if (row["model"], row["family"], row["perturbation"]) == key]
        own.sort(key=lambda row: row["severity"])
        if len(own) < 2:
            continue
        doses = np.array([0.0, *(row["severity"] / FULL for row in own)])
        lost = np.array([0.0, *(-row["change"] for row in own)])
        area = float(np.sum(np.diff(doses) * (lost[1:] + lost[:-1]) / 2) / doses[-1])
        yield {
            "model": key[0],
            "family": key[1],
            "perturbation": key[2],
            "severities": len(own),
            "area": area,
            "slope": float(doses @ lost / (doses @ doses)),
        }


def compared(
    names: tuple[str, str], first: Sequence[Found], second: Sequence[Found]
) -> Iterator[dict[str, Any]]:
    """Two models on the same variants: the difference of their accuracies (second - first) with its paired
    95 % interval, and McNemar's exact test. Raises ValueError where the variants differ.
    """
    if [f.variant.key for f in first] != [f.variant.key for f in second]:
        raise ValueError("two models are compared on the same variants, in the same order")
    pairs = list(zip(first, second, strict=True))
    for key in dict.fromkeys(_key(f) for f in first):
        own = [(a, b) for a, b in pairs if _key(a) == key]
        ours, theirs = [a.right for a, _ in own], [b.right for _, b in own]
        low, high = paired_interval(ours, theirs, sources([a.answered for a, _ in own]))
        test = mcnemar(ours, theirs)
        yield {
            "family": key[0],
            "perturbation": key[1],
            "severity": key[2],
            "n": len(own),
            names[0]: sum(ours) / len(own),
            names[1]: sum(theirs) / len(own),
            "difference": (sum(theirs) - sum(ours)) / len(own),
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
