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

from modint_guard.errors import ConfigError
from modint_guard.types import NEUTRAL_IMAGE, NO_CONTEXT, CellScore, Relevant, Score

FEATURES = ("js", "margin", "entropy", "pmi")
WITHOUT_IRRELEVANT = {Relevant.IMAGE: NO_CONTEXT, Relevant.TEXT: NEUTRAL_IMAGE}
_ROUNDS = 100
_STEP = 1e-10  # a Newton step shorter than this ends the fit
_ROUNDING = 1e-14  # of a loss, relative


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The constants of a verdict.

    risk = sigmoid(bias + weight_js * JS + weight_margin * margin + weight_entropy * H + weight_pmi * PMI).
    JS is the base-2 divergence between the served answer and the answer with the *irrelevant* modality taken
    out, margin = p(top answer) - p(y) under that same view, in [-1, 1], PMI = log p(y) served minus that
    under the view, nats a token, and H the entropy of the served answer at its first position, bits.
    An answer is flagged `text` or `image` when the view flips and risk >= flag_at; with `by_risk_alone`, as a
    calibration sets it, by the risk alone. The first three, flag_at and confident were fitted by
    `python -m bench thresholds` on TinyWorld's validation split (bench/results/thresholds.md); the others
    are set by hand.
    """

    bias: float = -3.727
    weight_js: float = 4.465
    weight_margin: float = 3.834
    weight_entropy: float = 0.0
    weight_pmi: float = 0.0
    flag_at: float = 0.2
    by_risk_alone: bool = False
    clear_below: float = 0.0  # a lower risk after the first view passes the answer; 0: no early stop
    flip_margin: float = 0.05  # a smaller lead over y is within the engine's noise: undecided
    confident: float = 0.9999  # a unimodal answer is certain from here on (prior and conflict rules)
    min_option_mass: float = 0.5  # the options are compared alone only where they hold this much probability
    min_probability: float = 1e-6  # log p(y) is clipped here before the influences are computed

    def __post_init__(self) -> None:
        for name in ("flag_at", "flip_margin", "confident", "min_option_mass", "clear_below"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"thresholds.{name} is {value}: it must lie between 0 and 1.")
        if self.clear_below > self.flag_at:
            raise ConfigError(
                f"thresholds.clear_below is {self.clear_below}: it must not exceed flag_at, {self.flag_at}."
            )
        if not 0.0 < self.min_probability < 1.0:
            raise ConfigError(
                f"thresholds.min_probability is {self.min_probability}: it must lie above 0 and below 1."
            )


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
        now = loss(found)
        # Beside the optimum both losses are equal but for their rounding: that is no reason to halve.
        while np.abs(step).max() > _STEP and loss(found - step) > now + _ROUNDING * abs(now):
            step = step / 2
        found = found - step
        if np.abs(step).max() <= _STEP:
            break
    return float(found[0]), found[1:]
