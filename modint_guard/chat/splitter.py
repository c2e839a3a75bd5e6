"""Tells context from question by a learnt chain of labels over the tokens of a request (`split_features`).

Each token is context or not. A labelling's score is the sum of the scores of its context tokens and of the
borders at which context begins or ends; the best one is found by dynamic programming, text by text. A context
that gains less than a limit is none: a false one deletes a part of the question in the views. The limit is
lower where the rules see context, too.

`python -m bench splitting-fit` makes the weights from the requests in bench/relevance/sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modint_guard.chat.linear import packed, unpacked
from modint_guard.chat.split_features import Flags, Rows, SplitFeatures

SPLITTER = Path(__file__).with_name("splitting.npz")
Floats = NDArray[np.float64]
_NEVER = -1e3  # the score of an option's token: options belong to the question


@dataclass(frozen=True, slots=True)
class Splitter:
    """Weights (BUCKETS, 3) and bias (3,) of: being context, entering it, leaving it.

    limits: the least gain of a context that begins where the rules see one, too, and elsewhere.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    limits: tuple[float, float]


@lru_cache(maxsize=1)
def shipped_splitter() -> Splitter:
    """The splitter in the package."""
    with np.load(SPLITTER, allow_pickle=False) as arrays:
        weights = unpacked(arrays["weights"], float(arrays["largest"]))
        return Splitter(weights, arrays["bias"], tuple(arrays["limits"].tolist()))


def write_splitter(splitter: Splitter, path: Path) -> None:
    """Write a splitter, packed; the same splitter gives the same bytes."""
    table, largest = packed(splitter.weights)
    np.savez_compressed(
        path,
        allow_pickle=False,
        weights=table,
        largest=np.array(largest),
        bias=splitter.bias,
        limits=np.array(splitter.limits),
    )


def context_tokens(features: SplitFeatures, splitter: Splitter) -> Flags:
    """Which tokens are context. In the question's message something is left: if all of it looks like context,
    the sentence that does so least is the question.
    """
    being, entering, leaving = label_scores(features, splitter)
    entering = entering - _least_gains(features, splitter.limits)
    flags = _labels(features, being, entering, leaving)
    if flags[features.turn].all() and features.turn.any():
        least = _least(features, being)
        being = np.where(features.tokens.sentence == least, _NEVER, being)
        flags = _labels(features, being, entering, leaving)
    return flags


def label_scores(features: SplitFeatures, splitter: Splitter) -> tuple[Floats, Floats, Floats]:
    """For each token the score of being context, of entering it before the token, and of leaving it there.
    What clause and sentence say is shared among their tokens, divided by the root of their number.
    """
    weights, tokens = splitter.weights, features.tokens
    being = _summed(features.token, weights[:, 0]) + float(splitter.bias[0])
    for rows, of in ((features.clause, tokens.clause), (features.sentence, tokens.sentence)):
        being += (_summed(rows, weights[:, 0]) / np.sqrt(np.bincount(of)))[of]
    being[features.offered] = _NEVER
    entering = _summed(features.border, weights[:, 1]) + float(splitter.bias[1])
    return being, entering, _summed(features.border, weights[:, 2]) + float(splitter.bias[2])


def _labels(features: SplitFeatures, being: Floats, entering: Floats, leaving: Floats) -> Flags:
    """The best labels of each text."""
    cuts = (np.flatnonzero(np.diff(features.tokens.text)) + 1).tolist()
    pieces = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(being)], strict=True)]
    return np.concatenate([best_labels(being[here], entering[here], leaving[here]) for here in pieces])


def _least_gains(features: SplitFeatures, limits: tuple[float, float]) -> Floats:
    """The least gain of a context that begins at each token; 0 within one that the rules see."""
    agreed, elsewhere = limits
    texts = features.tokens.text
    goes_on = np.append(False, features.ruled[:-1] & (texts[1:] == texts[:-1]))
    return np.where(features.ruled, np.where(goes_on, 0.0, agreed), elsewhere)


def _least(features: SplitFeatures, being: Floats) -> int:
    """The sentence of the question's message that looks least like context, the last one of several."""
    sentence = features.tokens.sentence
    means = np.bincount(sentence, being) / np.bincount(sentence)
    means[sentence[~features.turn]] = np.inf
    return len(means) - 1 - int(means[::-1].argmin())


def best_labels(being: Floats, entering: Floats, leaving: Floats) -> Flags:
    """The labels of one text that score best: True is context."""
    outside, inside = 0.0, float(being[0] + entering[0])
    came: list[tuple[bool, bool]] = []  # whether from context, into no context and into context
    steps = zip(being[1:].tolist(), entering[1:].tolist(), leaving[1:].tolist(), strict=True)
    for score, enters, leaves in steps:
        came.append((inside + leaves > outside, inside >= outside + enters))
        outside, inside = max(outside, inside + leaves), max(inside, outside + enters) + score
    labels = [inside > outside]
    for from_inside in reversed(came):
        labels.append(from_inside[labels[-1]])
    labels.reverse()
    return np.array(labels)


def _summed(rows: Rows, weights: NDArray[np.float32]) -> Floats:
    sums: Floats = np.bincount(rows.things, weights[rows.buckets] * rows.weights, rows.count)  # type: ignore[assignment]
    return sums
