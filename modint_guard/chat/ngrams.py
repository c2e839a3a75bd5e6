"""Hashes of the pieces of a text, all at once: what the classifier of relevance counts.

A piece is characters [start, end). Its hash depends on its characters alone, in lower case and with every
digit read as 0; prefix sums of a polynomial give the hashes of any number of pieces without a loop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CHARACTERS = 8_000  # in a hashed text
BITS = 16
BUCKETS = 1 << BITS
NGRAMS = (3, 4, 5)
Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

_STEP = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_WORD = re.compile(r"\w+|[^\w\s]")


def _powers(base: int) -> Hashes:
    powers = np.full(MAX_CHARACTERS + 1, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


_POWERS, _INVERSE_POWERS = _powers(_STEP), _powers(pow(_STEP, -1, 1 << 64))


@dataclass(frozen=True, slots=True)
class TextHashes:
    """The hashes of a text's character n-grams, by the lengths in NGRAMS, of its words and punctuation marks
    and of the pairs of neighbours among these, in order; and the words' lengths.
    """

    grams: tuple[Hashes, ...]
    words: Hashes
    pairs: Hashes
    lengths: Indices


def text_hashes(text: str) -> TextHashes:
    """The hashes of a text; ValueError if it is longer than MAX_CHARACTERS."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a hashed text has at most {MAX_CHARACTERS} characters, this one has {len(text)}")
    sums = prefix_sums(text)
    places = np.array([match.span() for match in _WORD.finditer(text)], np.int64).reshape(-1, 2)
    starts, ends = places[:, 0], places[:, 1]
    return TextHashes(
        tuple(
            piece_hashes(sums, at, at + n) for n in NGRAMS for at in [np.arange(max(len(text) - n + 1, 0))]
        ),
        piece_hashes(sums, starts, ends),
        piece_hashes(sums, starts[:-1], ends[1:]),
        ends - starts,
    )


def buckets(hashes: Hashes, salt: int) -> Indices:
    """A number below BUCKETS for each hash; another salt is another feature of the same piece."""
    mixed = (hashes ^ np.uint64(salt * _STEP % (1 << 64))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(64 - BITS)).astype(np.int64)


def prefix_sums(text: str) -> Hashes:
    """What `piece_hashes` needs of a text of at most MAX_CHARACTERS."""
    lower = text.replace("\u0130", "i").lower()  # the one letter that becomes two in lower case
    codes = np.frombuffer(lower.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    codes[(codes >= ord("0")) & (codes <= ord("9"))] = ord("0")
    codes[(codes == ord("\n")) | (codes == ord("\t"))] = ord(" ")
    terms = (codes + np.uint64(1)) * _POWERS[: len(codes)]
    return np.concatenate((np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)))


def piece_hashes(sums: Hashes, starts: Indices, ends: Indices) -> Hashes:
    """The hash of each piece [start, end)."""
    return (sums[ends] - sums[starts]) * _INVERSE_POWERS[starts]
