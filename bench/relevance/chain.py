"""Fits the chain of labels of `modint_guard.chat.splitter`: a conditional random field of two labels.

The loss is the negative log-likelihood of the labels with weight decay, minimised by some steps of L-BFGS.
Forward and backward passes go through all texts at once. Deterministic: no step draws a random number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from modint_guard.chat.linear import packed, unpacked
from modint_guard.chat.ngrams import BUCKETS
from modint_guard.chat.split_features import Rows, SplitFeatures
from modint_guard.chat.splitter import Splitter

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]
_DECAY = np.array([0.25, 0.5, 0.5], np.float32)  # of being context, of entering it, of leaving it
_STEPS = 100
_NEVER = -30.0  # the score of what is known to be no context
_START = (0.0, -2.0, -2.0)


@dataclass(frozen=True, slots=True)
class Example:
    """A request's features; labels: for each token whether it is context; weight: what a mistake costs."""

    features: SplitFeatures
    labels: Flags
    weight: float


def fit_chain(examples: Sequence[Example]) -> Splitter:
    """The splitter that these examples teach; its limits are 0."""
    chain = Chain(examples)
    used, borders = np.unique(chain.nodes.indices), np.unique(chain.borders.indices)
    size, half = len(used), len(borders)

    def unfolded(values: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weights = np.zeros((BUCKETS, 3), np.float32)
        weights[used, 0] = values[:size]
        weights[borders, 1] = values[size : size + half]
        weights[borders, 2] = values[size + half : -3]
        return weights, values[-3:].astype(np.float32)

    def loss(values: Floats) -> tuple[float, Floats]:
        value, slope, bias_slope = chain.loss(*unfolded(values))
        parts = (slope[used, 0], slope[borders, 1], slope[borders, 2], bias_slope)
        return value, np.concatenate(parts).astype(np.float64)

    start = np.zeros(size + 2 * half + 3)
    start[-3:] = _START
    options = {"maxiter": _STEPS, "maxcor": 6}
    weights, bias = unfolded(minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x)
    return Splitter(unpacked(*packed(weights)), bias, (0.0, 0.0))


class Chain:
    """All tokens of all examples one after another. nodes, borders: their features, (tokens, BUCKETS)."""

    def __init__(self, examples: Sequence[Example]) -> None:
        features = [example.features for example in examples]
        self.labels = np.concatenate([example.labels for example in examples])
        self.offered = np.concatenate([each.offered for each in features])
        self.costs = np.concatenate([np.full(len(e.labels), e.weight) for e in examples])
        self.tokens = _matrix([each.token for each in features])
        self.clauses = _matrix([each.clause for each in features])
        self.sentences = _matrix([each.sentence for each in features])
        self.borders = _matrix([each.border for each in features])
        self.of_clause = _shared([each.tokens.clause for each in features])
        self.of_sentence = _shared([each.tokens.sentence for each in features])
        self._turn_around()
        self._order([each.tokens.text for each in features])

    @property
    def nodes(self) -> csr_matrix:
        """All features but those of borders; only which buckets are used is of interest."""
        parts = (self.tokens.indices, self.clauses.indices, self.sentences.indices)
        buckets = np.concatenate(parts)
        return csr_matrix((np.ones(len(buckets), np.int8), buckets, [0, len(buckets)]), shape=(1, BUCKETS))

    def _turn_around(self) -> None:
        turned = [self.tokens, self.clauses, self.sentences, self.borders, self.of_clause, self.of_sentence]
        self.turned = [matrix.T.tocsr() for matrix in turned]

    def _order(self, texts: Sequence[Numbers]) -> None:
        """Texts by length, so that those with a token at a place are the first."""
        before = np.cumsum([0, *(int(each[-1]) + 1 for each in texts)])
        number = np.concatenate([each + first for each, first in zip(texts, before, strict=False)])
        self.first = np.append(True, number[1:] != number[:-1])
        starts = np.flatnonzero(self.first)
        lengths = np.diff(np.append(starts, len(number)))
        order = np.argsort(-lengths, kind="stable")
        self.starts, self.lengths = starts[order], lengths[order]
        self.back = np.argsort(order, kind="stable")
        self.active = [int((lengths > place).sum()) for place in range(int(lengths.max()))]

    def scores(self, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Of being context (tokens,); of entering and leaving it before each token (tokens, 2)."""
        being = (
            self.tokens @ weights[:, 0]
            + self.of_clause @ (self.clauses @ weights[:, 0])
            + self.of_sentence @ (self.sentences @ weights[:, 0])
            + bias[0]
        )
        crossing = self.borders @ weights[:, 1:] + bias[1:]
        return np.where(self.offered, _NEVER, being).astype(np.float64), crossing.astype(np.float64)

    def loss(
        self, weights: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> tuple[float, NDArray[np.float32], Floats]:
        """The loss, and its gradients by weights and by bias."""
        being, crossing = self.scores(weights, bias)
        total, inside, entered, left = self._marginals(being, crossing)
        before = np.where(self.first, False, np.append(False, self.labels[:-1]))
        enters, leaves = self.labels & ~before, ~self.labels & before
        said = np.where(self.labels, being, 0) + enters * crossing[:, 0] + leaves * crossing[:, 1]
        value = float((self.costs * (np.where(self.first, total, 0) - said)).sum())
        of_being = (self.costs * (inside - self.labels)).astype(np.float32)
        of_being[self.offered] = 0
        of_crossing = (self.costs[:, None] * np.stack([entered - enters, left - leaves], 1)).astype(
            np.float32
        )
        tokens, clauses, sentences, borders, by_clause, by_sentence = self.turned
        slope = np.empty((BUCKETS, 3), np.float32)
        slope[:, 0] = (
            tokens @ of_being + clauses @ (by_clause @ of_being) + sentences @ (by_sentence @ of_being)
        )
        slope[:, 1:] = borders @ of_crossing
        value += float(0.5 * (_DECAY * weights**2).sum())
        return value, slope + _DECAY * weights, np.append(of_being.sum(), of_crossing.sum(0))

    def _marginals(self, being: Floats, crossing: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """For each token the log of its text's sum over all labellings, and the probabilities of being
        context, of entering it and of leaving it there.
        """
        entering, leaving = crossing.T
        out, inside = np.zeros(len(being)), np.zeros(len(being))
        inside[self.starts] = being[self.starts] + entering[self.starts]
        for place in range(1, len(self.active)):
            here = self.starts[: self.active[place]] + place
            was_out, was_in = out[here - 1], inside[here - 1]
            out[here] = np.logaddexp(was_out, was_in + leaving[here])
            inside[here] = np.logaddexp(was_in, was_out + entering[here]) + being[here]
        last = self.starts + self.lengths - 1
        total = np.repeat(np.logaddexp(out[last], inside[last])[self.back], self.lengths[self.back])
        after_out, after_in = np.zeros(len(being)), np.zeros(len(being))
        for place in reversed(range(len(self.active) - 1)):
            here = self.starts[: self.active[place + 1]] + place
            will_out, will_in = after_out[here + 1], after_in[here + 1] + being[here + 1]
            after_out[here] = np.logaddexp(will_out, will_in + entering[here + 1])
            after_in[here] = np.logaddexp(will_in, will_out + leaving[here + 1])
        was_out = np.where(self.first, 0, np.append(0, out[:-1]))
        was_in = np.where(self.first, -np.inf, np.append(0, inside[:-1]))
        entered = np.exp(was_out + entering + being + after_in - total)
        return (
            total,
            np.exp(inside + after_in - total),
            entered,
            np.exp(was_in + leaving + after_out - total),
        )


def _matrix(rows: Sequence[Rows]) -> csr_matrix:
    firsts = np.cumsum([0, *(each.count for each in rows)])
    things = np.concatenate([each.things + first for each, first in zip(rows, firsts, strict=False)])
    places = np.concatenate([each.buckets for each in rows])
    weights = np.concatenate([each.weights for each in rows])
    return csr_matrix((weights, (things, places)), shape=(int(firsts[-1]), BUCKETS), dtype=np.float32)


def _shared(groups: Sequence[Numbers]) -> csr_matrix:
    """(tokens, groups): the share of each group's score that each of its tokens gets."""
    firsts = np.cumsum([0, *(int(each[-1]) + 1 for each in groups)])
    of = np.concatenate([each + first for each, first in zip(groups, firsts, strict=False)])
    shares = (1 / np.sqrt(np.bincount(of)))[of].astype(np.float32)
    return csr_matrix((shares, (np.arange(len(of)), of)), shape=(len(of), int(firsts[-1])))
