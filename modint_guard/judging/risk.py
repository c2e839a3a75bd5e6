"""The risk that a calibration gives an answer: a logistic function of a few features, and how it is fitted;
and the constants of a verdict.

Every feature is defined so that a larger value speaks for a wrong answer. js and margin say how far the
answer moves in the view without the irrelevant modality, and pmi how much that modality contributed to it.
entropy says how uncertain the answer itself is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modint_guard.errors import ConfigError
from modint_guard.types import NEUTRAL_IMAGE, NO_CONTEXT, CellScore, Relevant, Score

FEATURES = ("js", "margin", "entropy", "pmi")
WITHOUT_IRRELEVANT = {Relevant.IMAGE: NO_CONTEXT, Relevant.TEXT: NEUTRAL_IMAGE}
_ROUNDS = 100
_STEP = 1e-10  # a Newton step shorter than this ends the fit
_ROUNDING = 1e-14  # of a loss, relative


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The constants of a verdict that no null and no calibration measures. Raises ConfigError for a value out
    of range.
    """

    sure: float = 0.9  # of y and another answer: from which share the other is relied on, if no null knows
    certain: float = 0.99  # from which confidence counts where it is all there is: `prior` and `conflict`
    negligible: float = 0.5  # nats: a smaller influence of what is needed, on the log-odds of y, is none
    flip_margin: float = 0.05  # a smaller lead over y is within the engine's noise, and undecided
    min_option_mass: float = 0.5  # the options are compared alone if they hold this much probability
    min_probability: float = 1e-6  # p(y) is clipped here before its logarithm is taken

    def least_score(self, tokens: int = 1) -> float:
        """The least score of a flag, nats: the log-odds of `sure`, or 0 if these are negative. Of several
        tokens each is to be the surer, so that all of them are mistaken no more often (Bonferroni).
        """
        mistaken = (1.0 - self.sure) / tokens
        if mistaken in (0.0, 1.0):
            return 0.0 if mistaken else math.inf
        return max(0.0, math.log((1.0 - mistaken) / mistaken))

    def __post_init__(self) -> None:
        for name in ("sure", "certain", "flip_margin", "min_option_mass"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"thresholds.{name} is {value}: it must lie between 0 and 1.")
        if self.negligible < 0.0:
            raise ConfigError(f"thresholds.negligible is {self.negligible}: it must be at least 0.")
        if not 0.0 < self.min_probability < 1.0:
            raise ConfigError(
                f"thresholds.min_probability is {self.min_probability}: it must lie above 0 and below 1."
            )


@dataclass(frozen=True, slots=True)
class Logistic:
    """risk = sigmoid(bias + weights . features); `weights` are named as in FEATURES."""

    bias: float
    weights: dict[str, float]

    def risk(self, features: dict[str, float]) -> float:
        """The risk in [0, 1] of an answer with these features. Raises KeyError if one is missing."""
        return sigmoid(self.bias + sum(w * features[name] for name, w in self.weights.items()))


def features_of(cell: CellScore, entropy: float) -> dict[str, float]:
    """The features of an answer.

    cell: the view without the irrelevant modality. entropy: that of the answer itself, in bits.
    """
    return {"js": cell.divergence, "margin": cell.margin, "entropy": entropy, "pmi": cell.delta_logprob}


def features_of_score(score: Score, relevant: Relevant) -> dict[str, float] | None:
    """The features of a scored answer; None if the score lacks the view without the irrelevant modality."""
    cell = score.cells.get(WITHOUT_IRRELEVANT.get(relevant, ""))
    return None if cell is None else features_of(cell, score.entropy)


def sigmoid(z: float) -> float:
    """1 / (1 + exp(-z)), in [0, 1] for any z."""
    return 1.0 / (1.0 + math.exp(-z)) if z > -700.0 else 0.0


def fit(
    samples: Sequence[dict[str, float]],
    wrong: Sequence[bool],
    *,
    names: Sequence[str] = FEATURES,
    ridge: float = 0.1,
) -> Logistic:
    """A logistic function that predicts "wrong" and has no negative weight. Features that would get one are
    left out, the most negative first, so that the risk never falls as an answer moves further.

    samples: the features of each answer. wrong: whether each was wrong. ridge: the penalty on the weights
    (not on the bias), which keeps them finite for separable data. Raises ConfigError if all answers are right
    or all are wrong.
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
    weight_of = dict(zip(kept, (float(weight) for weight in weights), strict=True))
    return Logistic(bias, {name: weight_of.get(name, 0.0) for name in names})


def fit_logistic(
    features: NDArray[np.float64], labels: NDArray[np.float64], ridge: float
) -> tuple[float, NDArray[np.float64]]:
    """Bias and weights (K,) that minimise sum(log loss) + ridge/2 |weights|^2, by Newton's method with step
    halving (Hastie, Tibshirani and Friedman 2009, section 4.4).

    features: (N, K). labels: (N,), 0 or 1.
    """
    table = np.column_stack([np.ones(len(labels)), features])
    penalty = np.diag([0.0, *[ridge] * features.shape[1]])
    theta = np.zeros(table.shape[1])  # (1 + K,): bias, weights

    def loss(at: NDArray[np.float64]) -> float:
        z = table @ at
        return float(np.logaddexp(0.0, z).sum() - labels @ z + at @ penalty @ at / 2)

    for _ in range(_ROUNDS):
        p = 1.0 / (1.0 + np.exp(-np.clip(table @ theta, -500.0, 500.0)))
        gradient = table.T @ (p - labels) + penalty @ theta
        curvature = (table * (p * (1.0 - p))[:, None]).T @ table + penalty
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        now = loss(theta)
        # Beside the optimum both losses are equal but for their rounding: that is no reason to halve.
        while np.abs(step).max() > _STEP and loss(theta - step) > now + _ROUNDING * abs(now):
            step = step / 2
        theta = theta - step
        if np.abs(step).max() <= _STEP:
            break
    return float(theta[0]), theta[1:]
