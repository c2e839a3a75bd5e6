"""`python -m bench relevance-fit`: fits the classifier of relevance on the committed requests and on the
bundled worlds' own, chooses from which probability on it is believed, and writes its file and card.

A multinomial logistic regression over hashed features. Each request is shown twice: as a splitter divides it
that saw none of its author's requests, and as its labels do. Deterministic: no step draws a random number.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse import csr_matrix

from bench.relevance.fit_splitting import cross_fitted_chats
from bench.relevance.requests import (
    LABELS,
    LEARNING,
    SETS,
    LabelledRequest,
    as_labelled,
    digest,
    folds,
    read_requests,
)
from bench.relevance.worlds import AUTHOR, world_requests
from modint_guard.chat.linear import (
    WEIGHTS,
    Classifier,
    Features,
    Linear,
    packed,
    softmax,
    unpacked,
    write_classifier,
)
from modint_guard.chat.ngrams import BUCKETS
from modint_guard.chat.relevance import features_of, where_possible
from modint_guard.chat.request import parse
from modint_guard.types import Chat

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
PRECISION = {"image": 0.9, "text": 0.95, "both": 0.6}  # of what is believed, with authors held out in turn
_GRID = np.arange(0.4, 0.995, 0.01)
_FEW = 20  # fewer believed answers say nothing of their precision
_COST = np.array([1.0, 1.0, 1.4, 1.1], np.float32)  # of a mistake, by the label that was missed
_DECAY = 2.0
_STEPS = 60


def write_fitted(output: Path | None = None) -> Path:
    """Fit on the committed requests and on the bundled worlds' own; write the file and its card beside it."""
    path = output or WEIGHTS
    requests = [*read_requests(), *world_requests()]
    classifier = fit_classifier(requests, cross_fitted_chats(requests))
    write_classifier(classifier, path)
    card = {
        "command": "python -m bench relevance-fit",
        "sha256": digest(path),
        "sets": {name: digest(SETS / f"{name}.jsonl") for name in LEARNING},
        "requests": len(requests),
        "labels": list(LABELS),
        "believed_from": dict(zip(LABELS, classifier.limits, strict=True)),
        "table": "bench/results/relevance.md",
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    return path


def fit_classifier(requests: Sequence[LabelledRequest], chats: Sequence[Chat] | None = None) -> Classifier:
    """The classifier that these requests teach; its probabilities and limits are set on held-out authors.

    chats: the requests, divided; by default as the package does.
    """
    shown = Shown.of(requests, chats)
    by_hand = shown.authors != AUTHOR
    scores = cross_fitted(shown)[by_hand]
    labels, authors = shown.labels[by_hand], shown.authors[by_hand]
    temperature = _temperature(scores, labels)
    probabilities = calibrated(scores, labels, authors) * shown.possible[by_hand]
    model = shown.fitted(np.ones(len(requests), bool))
    calm = Linear(model.weights / np.float32(temperature), model.bias / np.float32(temperature))
    return Classifier(calm, limits_of(probabilities, labels))


class Shown:
    """Requests as the classifier sees them (requests, BUCKETS): as the splitter divides, as labels do."""

    def __init__(
        self, as_divided: csr_matrix, as_told: csr_matrix, possible: Floats, labels: Numbers, authors: Numbers
    ) -> None:
        self.as_divided, self.as_told, self.possible = as_divided, as_told, possible
        self.labels, self.authors = labels, authors

    @classmethod
    def of(cls, requests: Sequence[LabelledRequest], chats: Sequence[Chat] | None = None) -> "Shown":
        """These requests, with their labels and authors. chats: divided, by default as the package does."""
        chats = chats or [parse(request.body, decode=False) for request in requests]
        told = [as_labelled(request, chat) for request, chat in zip(requests, chats, strict=True)]
        return cls(
            _matrix([features_of(chat) for chat in chats]),
            _matrix([features_of(chat) for chat in told]),
            np.stack([where_possible(chat) for chat in chats]),
            np.array([LABELS.index(request.relevant) for request in requests]),
            np.array([request.author for request in requests]),
        )

    def fitted(self, rows: NDArray[np.bool_]) -> Linear:
        """The classifier that these rows teach."""
        labels = self.labels[rows]
        both = [self.as_divided[rows], self.as_told[rows]]
        return _fitted(_stacked(both), np.concatenate((labels, labels)), len(LABELS))


def cross_fitted(shown: Shown) -> Floats:
    """Scores of LABELS (requests, 4), not calibrated, by classifiers that saw no request of that author."""
    scores = np.zeros((len(shown.labels), len(LABELS)))
    for authors in folds(set(shown.authors) - {AUTHOR}):
        held = np.isin(shown.authors, list(authors))
        model = shown.fitted(~held)
        scores[held] = shown.as_divided[held] @ model.weights + model.bias
    return scores


def calibrated(scores: Floats, labels: Numbers, authors: Numbers) -> Floats:
    """Probabilities from scores; each author's with the temperature that fits the others."""
    probabilities = np.zeros_like(scores)
    for author in sorted(set(authors)):
        held = authors == author
        probabilities[held] = softmax(scores[held] / _temperature(scores[~held], labels[~held]))
    return probabilities


def limits_of(probabilities: Floats, labels: Numbers) -> tuple[float, ...]:
    """For each of LABELS the least probability from which on it is right as often as PRECISION asks; 1.0,
    which is never reached, for a label of which no such probability is known.
    """
    shares = probabilities / probabilities.sum(1, keepdims=True)
    best = shares.argmax(1)
    limits = []
    for number, name in enumerate(LABELS):
        certain = np.where(best == number, shares[:, number], -1.0)
        believed = [certain >= level for level in _GRID]
        kept = [
            float(level)
            for level, rows in zip(_GRID, believed, strict=True)
            if rows.sum() >= _FEW and (labels[rows] == number).mean() >= PRECISION.get(name, 2.0)
        ]
        limit = min(kept, default=1.0)
        limits.append(round(limit, 2))
    return tuple(limits)


def _temperature(scores: Floats, labels: Numbers) -> float:
    """The divisor of scores at which their probabilities fit the labels best."""

    def loss(temperature: float) -> float:
        probabilities = softmax(scores / temperature)
        return -float(np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).mean())

    return float(minimize_scalar(loss, bounds=(0.3, 5.0), method="bounded").x)


def _matrix(rows: Sequence[Features]) -> csr_matrix:
    places = np.repeat(np.arange(len(rows)), [len(row.buckets) for row in rows])
    buckets = np.concatenate([row.buckets for row in rows])
    weights = np.concatenate([row.weights for row in rows])
    return csr_matrix((weights, (places, buckets)), shape=(len(rows), BUCKETS))


def _stacked(matrices: Sequence[csr_matrix]) -> csr_matrix:
    return csr_matrix(
        (
            np.concatenate([m.data for m in matrices]),
            np.concatenate([m.indices for m in matrices]),
            np.concatenate([[0], np.cumsum(np.concatenate([np.diff(m.indptr) for m in matrices]))]),
        ),
        shape=(sum(m.shape[0] for m in matrices), matrices[0].shape[1]),
    )


def _fitted(matrix: csr_matrix, labels: Numbers, count: int) -> Linear:
    """A classifier of `count` classes, from some steps of L-BFGS on the log loss with weight decay."""
    used = np.unique(matrix.indices)
    dense = matrix[:, used].astype(np.float32)
    size = len(used) * count
    found = minimize(
        _loss(dense, labels, count),
        np.zeros(size + count),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _STEPS, "maxcor": 6},
    ).x
    weights = np.zeros((BUCKETS, count), np.float32)
    weights[used] = found[:size].reshape(len(used), count)
    return Linear(unpacked(*packed(weights)), found[size:].astype(np.float32))


def _loss(matrix: csr_matrix, labels: Numbers, count: int) -> Callable[[Floats], tuple[float, Floats]]:
    """The loss of weights and biases, and its gradient."""
    turned = matrix.T.tocsr()
    targets = np.eye(count, dtype=np.float32)[labels]
    costs = _COST[labels][:, None]

    def loss(values: Floats) -> tuple[float, Floats]:
        weights = values[:-count].reshape(-1, count).astype(np.float32)
        probabilities = softmax(matrix @ weights + values[-count:].astype(np.float32))
        value = -(costs[:, 0] * np.log(probabilities[np.arange(len(labels)), labels] + 1e-12)).sum()
        rest = costs * (probabilities - targets)
        gradient = turned @ rest + _DECAY * weights
        total = float(value + 0.5 * _DECAY * (weights**2).sum())
        return total, np.concatenate((gradient.ravel(), rest.sum(0))).astype(np.float64)

    return loss
