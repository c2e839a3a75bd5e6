"""A linear classifier over hashed features, with weights of one byte; its file is package data.

`python -m bench relevance-fit` makes the file from the requests in bench/relevance/sets.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modint_guard.chat.ngrams import Hashes, Indices, buckets

WEIGHTS = Path(__file__).with_name("reading.npz")
_FLAG_SALT = 1


@dataclass(frozen=True, slots=True)
class Features:
    """Features of some rows, sparse: the row, bucket and weight of each, in no order."""

    rows: Indices
    buckets: Indices
    weights: NDArray[np.float32]
    count: int  # of rows


@dataclass(frozen=True, slots=True)
class Linear:
    """A classifier of K classes: weights (BUCKETS, K), bias (K,)."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def probabilities(self, features: Features) -> NDArray[np.float64]:
        """(rows, K); each row sums to 1."""
        weighted = self.weights[features.buckets] * features.weights[:, None]
        scores = [np.bincount(features.rows, column, features.count) for column in weighted.T]
        return softmax(np.stack(scores, axis=1).astype(np.float64) + self.bias)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities in proportion to exp(score), along the last axis."""
    shifted: NDArray[np.float64] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares


@dataclass(frozen=True, slots=True)
class Reader:
    """What is known of how requests are worded: the classifier of units, the words that often begin a unit,
    and the classifier of what ought to decide.
    """

    units: Linear
    openers: frozenset[str]
    relevance: Linear


@lru_cache(maxsize=1)
def shipped_reader() -> Reader:
    """The reader in the package."""
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        units, relevance = (
            Linear(unpacked(arrays[name], float(arrays[f"{name}_largest"])), arrays[f"{name}_bias"])
            for name in ("units", "relevance")
        )
        return Reader(units, frozenset(str(word) for word in arrays["openers"]), relevance)


def write_reader(reader: Reader, path: Path = WEIGHTS) -> None:
    """Write a reader, packed; the same reader gives the same bytes."""
    arrays: dict[str, NDArray[Any]] = {"openers": np.array(sorted(reader.openers), np.str_)}
    for name, model in (("units", reader.units), ("relevance", reader.relevance)):
        arrays[name], largest = packed(model.weights)
        arrays[f"{name}_largest"], arrays[f"{name}_bias"] = np.array(largest), model.bias
    np.savez_compressed(path, allow_pickle=False, **arrays)


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


def collect(parts: Iterable[tuple[Indices, Indices, float]], count: int) -> Features:
    """Features of `count` rows from parts (rows, buckets, weight). Each part's weight is shared among the
    features that a row has of it: divided by the square root of their number.
    """
    rows, places, weights = [], [], []
    for row, bucket, weight in parts:
        share = weight / np.sqrt(np.maximum(np.bincount(row, minlength=count), 1))
        rows.append(row)
        places.append(bucket)
        weights.append(share[row].astype(np.float32))
    return Features(np.concatenate(rows), np.concatenate(places), np.concatenate(weights), count)


@lru_cache(maxsize=8192)
def flag_hash(flag: str) -> int:
    """The hash of a named feature."""
    return zlib.crc32(flag.encode()) * 0x9E3779B97F4A7C15 % (1 << 64)


def flag_buckets(flags: Sequence[str], salt: int = _FLAG_SALT) -> Indices:
    """The bucket of each named feature."""
    return buckets(flag_hashes(flags), salt)


def flag_hashes(flags: Sequence[str]) -> Hashes:
    """The hash of each named feature."""
    return np.array([flag_hash(flag) for flag in flags], np.uint64)


def pair_buckets(flags: Sequence[str]) -> Indices:
    """A bucket for each pair of named features that are present together."""
    hashes = flag_hashes(sorted(flags))
    first, second = np.triu_indices(len(hashes), 1)
    return buckets(hashes[first] * np.uint64(3) + hashes[second] * np.uint64(5), 2)
