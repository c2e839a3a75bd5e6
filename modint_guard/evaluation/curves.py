"""Curves and figures of a score against the truth: ROC, precision, reliability, risk over coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers with a risk in one range: how many, the mean risk that was said, the share that was wrong."""

    low: float
    high: float
    n: int
    said: float
    wrong: float


def roc(scores: Sequence[float], positive: Sequence[bool]) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) from the strictest threshold to the laxest, (0, 0) and (1, 1)
    included; equal scores are one step. Raises ValueError without both classes.
    """
    s, y = _checked(scores, positive)
    order = np.argsort(-s, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    hits = np.cumsum(y[order])[last_of_ties]
    alarms = last_of_ties + 1 - hits
    points = zip(alarms / (len(y) - y.sum()), hits / y.sum(), strict=True)
    return [(0.0, 0.0), *((float(fpr), float(tpr)) for fpr, tpr in points)]


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """The area under `roc`: P(a positive's score exceeds a negative's), ties counting half."""
    fpr, tpr = np.array(roc(scores, positive)).T
    return float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))


def auprc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Average precision: the mean precision at each positive, equal scores taken as one step."""
    s, y = _checked(scores, positive)
    order = np.argsort(-s, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    hits = np.cumsum(y[order])[last_of_ties]
    precision = hits / (last_of_ties + 1)
    return float(np.sum(np.diff(np.append(0.0, hits)) * precision) / y.sum())


def fpr_at(scores: Sequence[float], positive: Sequence[bool], tpr: float = 0.95) -> float:
    """The least false positive rate with which at least `tpr` of the positives are found."""
    return min(false for false, true in roc(scores, positive) if true >= tpr - 1e-12)


def risk_coverage(scores: Sequence[float], wrong: Sequence[bool]) -> list[tuple[float, float]]:
    """(coverage, error among the covered), answers of the lowest risk first; equal scores are one step."""
    s, y = np.asarray(scores, dtype=float), np.asarray(wrong, dtype=float)
    if not len(s) or len(s) != len(y):
        raise ValueError(f"need a label for each score, and at least one; got {len(s)} and {len(y)}")
    order = np.argsort(s, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    errors = np.cumsum(y[order])[last_of_ties]
    points = zip((last_of_ties + 1) / len(s), errors / (last_of_ties + 1), strict=True)
    return [(float(coverage), float(error)) for coverage, error in points]


def risk_at(scores: Sequence[float], wrong: Sequence[bool], coverage: float = 0.8) -> float:
    """The error among the answers of the lowest risk, at the least coverage reached of this size."""
    return next(error for covered, error in risk_coverage(scores, wrong) if covered >= coverage - 1e-12)


def reliability(risks: Sequence[float], wrong: Sequence[bool], bins: int = 10) -> list[Bin]:
    """Equal ranges of risk in [0, 1] that hold any answer: what was said and what was true."""
    s, y = np.asarray(risks, dtype=float), np.asarray(wrong, dtype=float)
    place = np.minimum((s * bins).astype(int), bins - 1)
    filled: list[Bin] = []
    for index in range(bins):
        inside = place == index
        if inside.any():
            said, true = float(s[inside].mean()), float(y[inside].mean())
            filled.append(Bin(index / bins, (index + 1) / bins, int(inside.sum()), said, true))
    return filled


def calibration_error(risks: Sequence[float], wrong: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: the mean distance of said and true over the bins, weighted by size."""
    filled = reliability(risks, wrong, bins)
    return sum(bin_.n * abs(bin_.said - bin_.wrong) for bin_ in filled) / sum(bin_.n for bin_ in filled)


def _checked(scores: Sequence[float], positive: Sequence[bool]) -> tuple[Values, Values]:
    s, y = np.asarray(scores, dtype=float), np.asarray(positive, dtype=float)
    if len(s) != len(y) or not 0 < y.sum() < len(y):
        raise ValueError(f"need a label for each score, and both classes; got {len(s)} and {len(y)} labels")
    return s, y
