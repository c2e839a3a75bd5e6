"""`python -m bench relevance-fit`: learns from the committed requests how requests are worded, and writes the
reader that the package ships.

Two multinomial logistic classifiers over hashed features. The one of relevance is trained on contexts as the
one of units divides them when the author is held out, so that it learns with the mistakes that it will see.
Deterministic: no step draws a random number.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse import csr_matrix, vstack

from bench.relevance.requests import (
    LABELS,
    LabelledRequest,
    labelled_letters,
    letters_in,
    read_requests,
    texts_of,
)
from bench.relevance.worlds import AUTHOR, world_requests
from modint_guard.chat.linear import (
    WEIGHTS,
    Features,
    Linear,
    Reader,
    packed,
    softmax,
    unpacked,
    write_reader,
)
from modint_guard.chat.ngrams import BUCKETS
from modint_guard.chat.relevance import features_of
from modint_guard.chat.request import parse, said_in
from modint_guard.chat.splitting import CONTEXT, OTHER, QUESTION, unit_features
from modint_guard.types import Chat, Span

Floats = NDArray[np.float64]
_OPENER_COUNT, _OPENER_SHARE = 3, 0.2
_UNIT_DECAY, _RELEVANCE_DECAY = 0.5, 1.0
_STEPS = 40
_WORD = re.compile(r"(?<!\S)\w+")
_EMPTY = Linear(np.zeros((BUCKETS, 3), np.float32), np.zeros(3, np.float32))


def write_fitted(output: Path | None = None) -> Path:
    """Learn from the committed requests and from the bundled worlds' own, and write the reader."""
    path = output or WEIGHTS
    write_reader(fit_reader([*read_requests(), *world_requests()]), path)
    return path


def fit_reader(requests: Sequence[LabelledRequest]) -> Reader:
    """The reader that these requests teach. Its probabilities of relevance are calibrated on held-out
    authors.
    """
    divide = fit_units(requests)
    chats, scores, labels = cross_fitted(requests)
    by_hand = np.array([request.author != AUTHOR for request in requests])
    temperature = _temperature(scores[by_hand], labels[by_hand])
    teaches = _teaches_relevance(requests)
    rows = [features_of(chat) for chat, teaching in zip(chats, teaches, strict=True) if teaching]
    model = _fitted(rows, labels[teaches], len(LABELS), _RELEVANCE_DECAY)
    calm = Linear(model.weights / np.float32(temperature), model.bias / np.float32(temperature))
    return replace(divide, relevance=calm)


def fit_units(requests: Sequence[LabelledRequest]) -> Reader:
    """A reader that can divide requests; its classifier of relevance is empty."""
    openers = _openers(requests)
    rows, labels = [], []
    for request in requests:
        said, places = said_in(request.body)
        placed, features = unit_features(said, openers)
        rows.append(features)
        labels += _unit_labels(request, [Span(*places[text], a, b) for text, a, b in placed])
    model = _fitted(rows, np.array(labels), 3, _UNIT_DECAY)
    return Reader(model, openers, _EMPTY)


def cross_fitted(requests: Sequence[LabelledRequest]) -> tuple[list[Chat], Floats, NDArray[np.int64]]:
    """For each request, by classifiers that did not learn from its author: the chat as it is divided, the
    scores of LABELS (not calibrated); and the number of its label.
    """
    authors = sorted({request.author for request in requests})
    chats: dict[str, Chat] = {}
    for author in authors:
        reader = fit_units([request for request in requests if request.author != author])
        chats |= {r.id: parse(r.body, reader=reader) for r in requests if r.author == author}
    ordered = [chats[request.id] for request in requests]
    rows = [features_of(chat) for chat in ordered]
    labels = np.array([LABELS.index(request.relevant) for request in requests])
    scores = np.zeros((len(requests), len(LABELS)))
    teaches = _teaches_relevance(requests)
    for author in authors:
        out = np.array([request.author == author for request in requests])
        taught = ~out & teaches
        model = _fitted(
            [row for row, teaching in zip(rows, taught, strict=True) if teaching],
            labels[taught],
            len(LABELS),
            _RELEVANCE_DECAY,
        )
        scores[out] = np.log(
            np.concatenate([model.probabilities(row) for row, held in zip(rows, out, strict=True) if held])
        )
    return ordered, scores, labels


def _teaches_relevance(requests: Sequence[LabelledRequest]) -> NDArray[np.bool_]:
    """Which requests the classifier of relevance is fitted on: every third of the worlds' own, which have few
    wordings, and all others.
    """
    return np.array([r.author != AUTHOR or number % 3 == 0 for number, r in enumerate(requests)])


def calibrated(scores: Floats, labels: NDArray[np.int64], authors: Sequence[str]) -> Floats:
    """Probabilities from scores; each author's with the temperature that fits the others."""
    names = np.array(authors)
    probabilities = np.zeros_like(scores)
    for author in sorted(set(authors)):
        held = names == author
        probabilities[held] = softmax(scores[held] / _temperature(scores[~held], labels[~held]))
    return probabilities


def _temperature(scores: Floats, labels: NDArray[np.int64]) -> float:
    """The divisor of scores at which their probabilities fit the labels best."""

    def loss(temperature: float) -> float:
        probabilities = softmax(scores / temperature)
        return -float(np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).mean())

    return float(minimize_scalar(loss, bounds=(0.3, 5.0), method="bounded").x)


def _openers(requests: Sequence[LabelledRequest]) -> frozenset[str]:
    """Words at which, in a share of the places where they stand, context begins or ends."""
    begins: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for request in requests:
        context = labelled_letters(request)
        for message, part, text in texts_of(request.body):
            words = [(match.start(), match.group().lower()) for match in _WORD.finditer(text)]
            for (before, _), (here, word) in pairwise(words):
                total[word] += 1
                begins[word] += ((message, part, here) in context) != ((message, part, before) in context)
    return frozenset(
        word for word, count in begins.items() if count >= max(_OPENER_COUNT, _OPENER_SHARE * total[word])
    )


def _unit_labels(request: LabelledRequest, spans: Sequence[Span]) -> list[int]:
    """Context if half of a unit's letters or more are labelled so; question likewise; else other."""
    context = labelled_letters(request)
    asked = _question_letters(request)
    labels = []
    for span in spans:
        letters = letters_in(request.body, [span])
        is_context, is_question = (2 * len(letters & these) >= len(letters) for these in (context, asked))
        labels.append(CONTEXT if is_context else QUESTION if is_question else OTHER)
    return labels


def _question_letters(request: LabelledRequest) -> set[tuple[int, int | None, int]]:
    for message, part, text in reversed([*texts_of(request.body)]):
        if (start := text.rfind(request.question)) >= 0:
            return letters_in(request.body, [Span(message, part, start, start + len(request.question))])
    return set()


def _fitted(rows: Sequence[Features], labels: NDArray[np.int64], count: int, decay: float) -> Linear:
    """A classifier of `count` classes, from some steps of L-BFGS on the log loss with weight decay."""
    matrix = vstack(
        [csr_matrix((row.weights, (row.rows, row.buckets)), shape=(row.count, BUCKETS)) for row in rows]
    ).tocsr()
    used = np.unique(matrix.indices)
    dense = matrix[:, used].astype(np.float32)
    size = len(used) * count
    found = minimize(
        _loss(dense, labels, count, decay),
        np.zeros(size + count),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _STEPS, "maxcor": 6},
    ).x
    weights = np.zeros((BUCKETS, count), np.float32)
    weights[used] = found[:size].reshape(len(used), count)
    return Linear(unpacked(*packed(weights)), found[size:].astype(np.float32))


def _loss(
    matrix: csr_matrix, labels: NDArray[np.int64], count: int, decay: float
) -> Callable[[Floats], tuple[float, Floats]]:
    """The loss of weights and biases, and its gradient."""
    turned = matrix.T.tocsr()
    targets = np.eye(count, dtype=np.float32)[labels]

    def loss(values: Floats) -> tuple[float, Floats]:
        weights = values[:-count].reshape(-1, count).astype(np.float32)
        probabilities = softmax(matrix @ weights + values[-count:].astype(np.float32))
        value = -np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).sum()
        rest = probabilities - targets
        gradient = turned @ rest + decay * weights
        total = float(value + 0.5 * decay * (weights**2).sum())
        return total, np.concatenate((gradient.ravel(), rest.sum(0))).astype(np.float64)

    return loss
