"""Hashes of pieces of a text, all at once: what the two classifiers of a request count.

A piece is characters [start, end). Its hash depends on its characters alone, in lower case and with every
digit read as 0; prefix sums of a polynomial give the hashes of any number of pieces without a loop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CHARACTERS = 24_000  # in a hashed text
BITS = 16
BUCKETS = 1 << BITS
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
class HashedText:
    """The prefix sums of a text of at most MAX_CHARACTERS characters."""

    sums: Hashes

    def hashes(self, starts: Indices, ends: Indices) -> Hashes:
        """The hash of each piece [start, end)."""
        return (self.sums[ends] - self.sums[starts]) * _INVERSE_POWERS[starts]

    def ngrams(self, length: int, group: Indices) -> tuple[Indices, Hashes]:
        """The pieces of `length` characters that lie in one group, as (group of each, hash of each).

        group: the group of each character; -1 for characters in none. Groups are contiguous.
        """
        starts = np.arange(max(len(group) - length + 1, 0))
        first, last = group[starts], group[starts + length - 1]
        starts = starts[(first == last) & (first >= 0)]
        return group[starts], self.hashes(starts, starts + length)


def hashed(text: str) -> HashedText:
    """The hashes of a text; ValueError if it is longer than MAX_CHARACTERS."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a hashed text has at most {MAX_CHARACTERS} characters, this one has {len(text)}")
    lower = text.replace("\u0130", "i").lower()  # the one letter that becomes two in lower case
    codes = np.frombuffer(lower.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    codes[(codes >= ord("0")) & (codes <= ord("9"))] = ord("0")
    codes[(codes == ord("\n")) | (codes == ord("\t"))] = ord(" ")
    terms = (codes + np.uint64(1)) * _POWERS[: len(codes)]
    return HashedText(np.concatenate((np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64))))


def words_of(text: str) -> tuple[Indices, Indices]:
    """Starts and ends of the words and punctuation marks of a text, in order."""
    places = [match.span() for match in _WORD.finditer(text)]
    both = np.array(places, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def buckets(hashes: Hashes, salt: int) -> Indices:
    """A number below BUCKETS for each hash; another salt is another feature of the same piece."""
    mixed = (hashes ^ np.uint64(salt * _STEP % (1 << 64))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(64 - BITS)).astype(np.int64)
