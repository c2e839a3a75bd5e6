"""A linear classifier over hashed features, with weights of one byte; its file is package data.

`python -m bench relevance-fit` makes the file from the requests in bench/relevance/sets.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modint_guard.chat.ngrams import Hashes, Indices, buckets

WEIGHTS = Path(__file__).with_name("relevance.npz")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Features:
    """The features of one text, sparse: the bucket and the weight of each, in no order."""

    buckets: Indices
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Linear:
    """A classifier of K classes: weights (BUCKETS, K), bias (K,)."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def probabilities(self, features: Features) -> Floats:
        """(K,); they sum to 1."""
        weights = features.weights.astype(np.float64)
        return softmax(weights @ self.weights[features.buckets].astype(np.float64) + self.bias)


def softmax(scores: Floats) -> Floats:
    """Probabilities in proportion to exp(score), along the last axis."""
    shifted: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier and, for each of its classes, the least probability at which it is believed."""

    model: Linear
    limits: tuple[float, ...]


@lru_cache(maxsize=1)
def shipped_classifier() -> Classifier:
    """The classifier in the package."""
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        weights = unpacked(arrays["weights"], float(arrays["largest"]))
        return Classifier(Linear(weights, arrays["bias"]), tuple(arrays["limits"].tolist()))


def write_classifier(classifier: Classifier, path: Path) -> None:
    """Write a classifier, packed; the same classifier gives the same bytes."""
    table, largest = packed(classifier.model.weights)
    np.savez_compressed(
        path,
        allow_pickle=False,
        weights=table,
        largest=np.array(largest),
        bias=classifier.model.bias,
        limits=np.array(classifier.limits),
    )


def packed(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    """Weights as one byte each, and the largest of them: the byte goes with the square root, so that small
    weights, of which there are many, stay apart.
    """
    largest = float(np.abs(weights).max()) or 1.0
    return np.round(np.sign(weights) * np.sqrt(np.abs(weights) / largest) * 127).astype(np.int8), largest


def unpacked(table: NDArray[np.int8], largest: float) -> NDArray[np.float32]:
    """The weights that `packed` packed, to within its steps."""
    roots = table.astype(np.float32) / 127
    return (np.sign(roots) * roots**2 * largest).astype(np.float32)


def collect(parts: Iterable[tuple[Indices, float]]) -> Features:
    """Features from parts (buckets, weight). A part's weight is shared among its features: divided by the
    square root of their number.
    """
    given = [(places, weight) for places, weight in parts if len(places)]
    return Features(
        np.concatenate([places for places, _ in given]),
        np.concatenate(
            [np.full(len(places), weight / len(places) ** 0.5) for places, weight in given]
        ).astype(np.float32),
    )


def flag_buckets(flags: Sequence[str], salt: int) -> Indices:
    """The bucket of each named feature."""
    return buckets(_flag_hashes(flags), salt)


def pair_buckets(flags: Sequence[str], salt: int) -> Indices:
    """A bucket for each pair of named features that are present together."""
    hashes = _flag_hashes(sorted(flags))
    first, second = np.triu_indices(len(hashes), 1)
    return buckets(hashes[first] * np.uint64(3) + hashes[second] * np.uint64(5), salt)


@lru_cache(maxsize=8192)
def _flag_hash(flag: str) -> int:
    return zlib.crc32(flag.encode()) * 0x9E3779B97F4A7C15 % (1 << 64)


def _flag_hashes(flags: Sequence[str]) -> Hashes:
    return np.array([_flag_hash(flag) for flag in flags], np.uint64)
