"""The risk: a logistic of a few features of one answer, and how it is fitted.

Every feature is turned so that more of it speaks for a wrong answer. They are read from the view without the
irrelevant modality: how far the answer moved (js, margin), what that modality told of it (pmi), and how
unsure the answer itself was (entropy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modint_guard.config import Thresholds
from modint_guard.errors import ConfigError
from modint_guard.types import NEUTRAL_IMAGE, NO_CONTEXT, CellScore, Relevant, Score

FEATURES = ("js", "margin", "entropy", "pmi")
WITHOUT_IRRELEVANT = {Relevant.IMAGE: NO_CONTEXT, Relevant.TEXT: NEUTRAL_IMAGE}
_ROUNDS = 100
_STEP = 1e-10  # a Newton step shorter than this ends the fit


@dataclass(frozen=True, slots=True)
class Logistic:
    """risk = sigmoid(bias + weights . features); `weights` by the names of FEATURES."""

    bias: float
    weights: dict[str, float]

    def risk(self, features: dict[str, float]) -> float:
        """In [0, 1]."""
        return sigmoid(self.bias + sum(w * features[name] for name, w in self.weights.items()))


def features_of(cell: CellScore, entropy: float) -> dict[str, float]:
    """The features of an answer: of the view without the irrelevant modality, and its own entropy in bits."""
    return {"js": cell.divergence, "margin": cell.margin, "entropy": entropy, "pmi": cell.delta_logprob}


def features_of_score(score: Score, relevant: Relevant) -> dict[str, float] | None:
    """The same from a score; None where no modality is known to be irrelevant or its view is missing."""
    cell = score.cells.get(WITHOUT_IRRELEVANT.get(relevant, ""))
    return None if cell is None else features_of(cell, score.entropy)


def risk_of(cell: CellScore, entropy: float, thresholds: Thresholds) -> float:
    """The risk in [0, 1] under these thresholds."""
    features = features_of(cell, entropy)
    return sigmoid(
        thresholds.bias + sum(getattr(thresholds, f"weight_{name}") * features[name] for name in FEATURES)
    )


def sigmoid(z: float) -> float:
    """1 / (1 + exp(-z)), for any z."""
    return 1.0 / (1.0 + math.exp(-z)) if z > -700.0 else 0.0


def fit(
    samples: Sequence[dict[str, float]],
    wrong: Sequence[bool],
    *,
    names: Sequence[str] = FEATURES,
    ridge: float = 0.1,
) -> Logistic:
    """A logistic for "wrong" with no negative weight: a feature that would get one is left out, the most
    negative first, so that the risk never falls as the answer moves further.

    ridge: of the weights, not of the bias; mild, so that separable data stays finite. Raises ConfigError
    where all answers are right or all are wrong.
    """
    if len(set(wrong)) < 2:
        raise ConfigError(
            f"{len(wrong)} answers, all right or all wrong: no risk can be fitted; ask more items"
        )
    labels = np.array(wrong, dtype=float)
    kept = list(names)
    while True:
        table = np.array([[sample[name] for name in kept] for sample in samples], dtype=float)
        bias, weights = fit_logistic(table.reshape(len(labels), len(kept)), labels, ridge)
        if not kept or (least := int(weights.argmin())) < 0 or weights[least] >= 0.0:
            break
        del kept[least]
    found = dict(zip(kept, (float(weight) for weight in weights), strict=True))
    return Logistic(bias, {name: found.get(name, 0.0) for name in names})


def fit_logistic(
    features: NDArray[np.float64], labels: NDArray[np.float64], ridge: float
) -> tuple[float, NDArray[np.float64]]:
    """Bias and weights that minimise sum(log loss) + ridge/2 |weights|^2, by Newton's method with halved
    steps (Hastie, Tibshirani and Friedman 2009, section 4.4). features: (N, K), labels: (N,) of 0 and 1.
    """
    table = np.column_stack([np.ones(len(labels)), features])
    penalty = np.diag([0.0, *[ridge] * features.shape[1]])
    found = np.zeros(table.shape[1])

    def loss(at: NDArray[np.float64]) -> float:
        z = table @ at
        return float(np.logaddexp(0.0, z).sum() - labels @ z + at @ penalty @ at / 2)

    for _ in range(_ROUNDS):
        p = 1.0 / (1.0 + np.exp(-np.clip(table @ found, -500.0, 500.0)))
        gradient = table.T @ (p - labels) + penalty @ found
        curvature = (table * (p * (1.0 - p))[:, None]).T @ table + penalty
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while np.abs(step).max() > _STEP and loss(found - step) > loss(found):
            step = step / 2
        found = found - step
        if np.abs(step).max() <= _STEP:
            break
    return float(found[0]), found[1:]
