"""What the learnt splitter sees of a request's texts, as hashed features.

Features describe sentences, clauses, tokens and the borders before tokens. A token's score is that of its own
features and of its clause's and sentence's, which its tokens share. What the rules of `request` say of a
token is a feature among others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modint_guard.chat.ngrams import Hashes, buckets, piece_hashes, prefix_sums
from modint_guard.chat.question_words import ASKS, MAY_ASK, kind_of
from modint_guard.chat.tokens import QUESTION_MARKS, Indices, Tokens, tokens_of

Flags = NDArray[np.bool_]
CONTEXT, QUESTION = 1, 2  # what the rules say of a character; 0: nothing
# Where a text stands: the last three in the question's message.
SYSTEM, EARLIER, ONLY, NOT_LAST, LAST = range(5)
_GRAM = 3
_BEGINNING, _ENDING = 4, 3  # letters of a word
_NONE = np.uint64(0x5851F42D4C957F2D)  # stands for a neighbour that is not there
_SALT = np.uint64(0xA0761D6478BD642F)  # times the number of a kind of feature
_MANY = 64  # more than the values of a key


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a request, one after another.

    whole: all of them, each on a line of its own; at most MAX_CHARACTERS of `ngrams`. starts: where each
    begins. roles: where each stands, one of SYSTEM, EARLIER, ONLY, NOT_LAST, LAST. ruled: for each character,
    what the rules say. offered: whether it belongs to the options. pictures, options, answers: how many the
    request has.
    """

    whole: str
    starts: tuple[int, ...]
    roles: tuple[int, ...]
    ruled: NDArray[np.int8]
    offered: Flags
    pictures: int
    options: int
    answers: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Sparse features of `count` things: the thing, the bucket and the weight of each."""

    count: int
    things: Indices
    buckets: Indices
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SplitFeatures:
    """The features of a request. offered, turn, ruled: which tokens belong to the options, which stand in the
    question's message, and which are context by the rules. border: has a row for each token, for the border
    before it.
    """

    tokens: Tokens
    offered: Flags
    turn: Flags
    ruled: Flags
    token: Rows
    clause: Rows
    sentence: Rows
    border: Rows


def split_features(texts: Texts) -> SplitFeatures:
    """The features of texts that hold at least one token."""
    seen = _Seen(texts)
    return SplitFeatures(
        seen.tokens,
        seen.offered,
        seen.roles > EARLIER,
        seen.ruled == CONTEXT,
        _token_rows(seen),
        _clause_rows(seen),
        _sentence_rows(seen),
        _border_rows(seen),
    )


class _Seen:
    """The texts as hashes, and what is known of each token and sentence."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.tokens = at = tokens_of(texts.whole, texts.starts)
        self.sums = prefix_sums(texts.whole)
        starts, ends = at.starts, at.ends
        self.words = piece_hashes(self.sums, starts, ends)
        self.beginnings = piece_hashes(self.sums, starts, np.minimum(starts + _BEGINNING, ends))
        self.endings = piece_hashes(self.sums, np.maximum(starts, ends - _ENDING), ends)
        self.pairs = piece_hashes(self.sums, starts[:-1], ends[1:])
        self.offered = texts.offered[starts]
        self.ruled = texts.ruled[starts].astype(np.int64)
        self.roles = np.array(texts.roles, np.int64)[at.text]
        self.sentences = _Groups(at.sentence)
        self.clauses = _Groups(at.clause)
        kinds = [
            kind_of(texts.whole[a:b]) if b - a > 1 or sign.isalnum() else 0
            for a, b, sign in zip(starts.tolist(), ends.tolist(), at.signs, strict=True)
        ]
        self.kinds = np.array(kinds, np.uint64)
        self.asking = (self.kinds == ASKS) | (self.kinds == MAY_ASK)
        self.marks = np.array([sign in QUESTION_MARKS for sign in at.signs])
        self.digits = np.array([sign.isdigit() for sign in at.signs])
        last = self.sentences.last
        self.asks = self.marks[last] | self.marks[np.maximum(last - 1, self.sentences.first)]
        self.ruled_share = _thirds(self.sentences.shares(self.ruled == CONTEXT))
        self.state = (
            self.asks + 2 * (self.roles[self.sentences.first] > EARLIER) + 4 * np.minimum(self.ruled_share, 1)
        )  # of a sentence: does it ask, where does it stand, do the rules see context in it
        self.token_state = self.state[at.sentence]
        self.ahead = self._ahead()
        self.grams, self.gram_token = self._grams()

    def _ahead(self) -> Indices:
        """Whether a word that asks is this one (0), comes later in the sentence (1) or not (2); plus 3 if one
        came before.
        """
        counted = np.cumsum(self.asking)
        first, last = self.sentences.first[self.tokens.sentence], self.sentences.last[self.tokens.sentence]
        before = counted - self.asking - (counted[first] - self.asking[first])
        after = counted[last] - counted
        ahead: Indices = np.where(self.asking, 0, np.where(after > 0, 1, 2)) + 3 * (before > 0)
        return ahead

    def _grams(self) -> tuple[Hashes, Indices]:
        """The character n-grams that begin within a token and end within its sentence, and their tokens."""
        places = np.arange(max(len(self.texts.whole) - _GRAM + 1, 0))
        token = np.searchsorted(self.tokens.starts, places, side="right") - 1
        ends = self.tokens.ends[self.sentences.last[self.tokens.sentence[token]]]
        kept = (token >= 0) & (places + _GRAM <= ends)
        places, token = places[kept], token[kept]
        return piece_hashes(self.sums, places, places + _GRAM), token

    def edges(self, groups: _Groups) -> tuple[Hashes, Hashes, Hashes, Hashes]:
        """The first word, the first two, the last two and the last one of each group."""
        starts, ends, first, last = self.tokens.starts, self.tokens.ends, groups.first, groups.last
        return (
            self.words[first],
            piece_hashes(self.sums, starts[first], ends[np.minimum(first + 1, last)]),
            piece_hashes(self.sums, starts[np.maximum(last - 1, first)], ends[last]),
            self.words[last],
        )


class _Groups:
    """Tokens in groups that follow each other. of: the group of each token; first, last: a group's tokens."""

    def __init__(self, of: Indices) -> None:
        self.of = of
        self.count = int(of[-1]) + 1
        self.first = np.searchsorted(of, np.arange(self.count))
        self.last = np.append(self.first[1:], len(of)) - 1
        self.lengths = self.last - self.first + 1

    def numbers(self, flags: Flags) -> Indices:
        """How many tokens of each group have the flag."""
        return np.bincount(self.of, flags, self.count).astype(np.int64)

    def shares(self, flags: Flags) -> NDArray[np.float64]:
        """Which share of each group's tokens has the flag."""
        return np.bincount(self.of, flags, self.count) / self.lengths


class _Table:
    """Collects features; every call is a kind of feature of its own. All are hashed at once, in `rows`."""

    def __init__(self, count: int, salt: int) -> None:
        self.count, self._first_salt = count, salt
        self._all = np.arange(count)
        self._things: list[Indices] = []
        self._hashes: list[Hashes] = []
        self._keys: list[Indices] = []
        self._weights: list[NDArray[np.float64]] = []

    def each(self, hashes: Hashes, weight: float, by: Indices | None = None) -> None:
        """One feature of each thing. by: small numbers; each has features of its own."""
        self._add(self._all, hashes, np.full(self.count, weight), by)

    def key(self, keys: Indices, weight: float) -> None:
        """The key itself as a feature of each thing."""
        self.each(np.full(self.count, _NONE), weight, keys)

    def bag(self, things: Indices, hashes: Hashes, weight: float, by: Indices | None = None) -> None:
        """Any number of features of each thing, which share the weight."""
        number = np.bincount(things, minlength=self.count)
        self._add(things, hashes, weight / np.sqrt(number[things]), by)

    def rows(self) -> Rows:
        """All that was added."""
        sizes = [len(hashes) for hashes in self._hashes]
        salts = np.arange(self._first_salt, self._first_salt + len(sizes), dtype=np.uint64)
        hashes = _joined(np.concatenate(self._hashes), np.concatenate(self._keys))
        return Rows(
            self.count,
            np.concatenate(self._things),
            buckets(hashes ^ np.repeat(salts * _SALT, sizes), 0),
            np.concatenate(self._weights).astype(np.float32),
        )

    def _add(self, things: Indices, hashes: Hashes, weights: NDArray[np.float64], by: Indices | None) -> None:
        self._things.append(things)
        self._hashes.append(hashes)
        self._keys.append(np.zeros(len(things), np.int64) if by is None else by)
        self._weights.append(weights)


def _joined(hashes: Hashes, keys: Indices) -> Hashes:
    """A hash of each pair of a hash and a key."""
    mixed: Hashes = (
        hashes ^ (keys.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    ) * np.uint64(0x9E3779B97F4A7C15)
    return mixed


def _moved(values: Hashes, by: int, groups: Indices) -> Hashes:
    """The value `by` places later within the same group; _NONE beyond its ends."""
    moved = np.full(len(values), _NONE)
    size = len(values) - abs(by)
    if size <= 0:
        return moved
    here = slice(0, size) if by > 0 else slice(-by, None)
    there = slice(by, None) if by > 0 else slice(0, size)
    moved[here] = np.where(groups[here] == groups[there], values[there], _NONE)
    return moved


def _thirds(shares: NDArray[np.float64]) -> Indices:
    """0 for nearly none, 2 for nearly all, 1 between."""
    return (shares > 0.05).astype(np.int64) + (shares > 0.95)


def _log2(numbers: Indices, most: int) -> Indices:
    return np.minimum(np.log2(numbers + 1).astype(np.int64), most)


def _sentence_rows(seen: _Seen) -> Rows:
    groups, tokens = seen.sentences, seen.tokens
    texts, roles = tokens.text[groups.first], seen.roles[groups.first]
    same = tokens.sentence[:-1] == tokens.sentence[1:]
    table = _Table(groups.count, 0)
    table.bag(groups.of, seen.words, 1.0)
    table.bag(groups.of, seen.words, 1.0, seen.roles)
    table.bag(groups.of, seen.beginnings, 0.7)
    table.bag(groups.of[:-1][same], seen.pairs[same], 0.6)
    table.bag(groups.of[seen.gram_token], seen.grams, 0.7)
    table.bag(groups.of[seen.gram_token], seen.grams, 0.5, seen.roles[seen.gram_token])
    first, first_two, last_two, last = seen.edges(groups)
    before_last = np.maximum(groups.last - 1, groups.first)
    for hashes, weight in (
        (first, 0.6),
        (first_two, 0.5),
        (seen.beginnings[groups.first], 0.4),
        (last, 0.5),
        (last_two, 0.4),
        (seen.endings[groups.last], 0.3),
        (seen.endings[before_last], 0.3),
    ):
        table.each(hashes, weight, roles)
        table.each(hashes, 0.7 * weight)
    for hashes in (first, last):
        for by in (1, -1):
            table.each(_moved(hashes, by, texts), 0.4, roles)
    columns = _columns(seen, texts, roles)
    known = seen.kinds > 0
    named, of = seen.kinds[known], groups.of[known]
    table.bag(of, named, 1.0)
    table.bag(of, named, 1.0, seen.roles[known])
    for column in (0, 1, 2, 5, 6, 7, 8, 9, 10, 16):
        table.bag(of, named, 0.4, columns[of, column])
    places = np.broadcast_to(np.arange(columns.shape[1]), columns.shape)
    coded = _joined(places.astype(np.uint64), columns)
    rows = np.repeat(np.arange(groups.count), columns.shape[1])
    table.bag(rows, coded.ravel(), 1.6)
    left, right = np.triu_indices(columns.shape[1], 1)
    pairs = coded[:, left] * np.uint64(3) + coded[:, right] * np.uint64(5)
    table.bag(np.repeat(np.arange(groups.count), len(left)), pairs.ravel(), 2.0)
    return table.rows()


def _columns(seen: _Seen, texts: Indices, roles: Indices) -> Indices:
    """What is known of each sentence: (sentences, columns), small numbers."""
    groups, gaps, signs = seen.sentences, seen.tokens.gap, seen.tokens.signs
    number = np.arange(groups.count)
    first_of_text = np.searchsorted(texts, texts)
    last_of_text = np.searchsorted(texts, texts, side="right") - 1
    asked = np.cumsum(seen.asks)
    before = asked - seen.asks - (asked[first_of_text] - seen.asks[first_of_text]) > 0
    after = asked[last_of_text] - asked > 0
    of_turn = roles > EARLIER
    next_in_text, last_in_text = np.minimum(number + 1, groups.count - 1), number == last_of_text
    shape = (
        np.array([sign in ":：" for sign in signs]),
        np.array([sign in "\"“”«»„「」'‘’" for sign in signs]),
    )
    divided = np.array([sign in "|/" for sign in signs])
    return np.stack(
        [
            roles,
            np.minimum(number - first_of_text, 3),
            np.minimum(last_of_text - number, 3),
            _log2(groups.lengths, 6),
            np.minimum(groups.numbers(seen.digits), 3),
            np.where(seen.asks, 2, groups.numbers(seen.marks) > 0),
            after,
            before,
            np.full(groups.count, bool((seen.asks & of_turn).any())),
            groups.numbers(seen.asking) > 0,
            _thirds(groups.shares(seen.ruled == QUESTION)),
            groups.numbers(seen.offered) > 0,
            np.minimum(groups.numbers(shape[0]), 2),
            groups.numbers(shape[1]) > 0,
            gaps[groups.first],
            np.where(last_in_text, 0, gaps[groups.first[next_in_text]]),
            seen.ruled_share,
            np.where(last_in_text, 2, seen.asks[next_in_text]),
            np.where(number == first_of_text, 2, seen.asks[number - 1]),
            np.full(groups.count, min(seen.texts.options, 1) + 2 * min(seen.texts.pictures, 1)),
            np.full(groups.count, min(seen.texts.answers, 1)),
            np.minimum(groups.numbers(_label_like(seen)), 2),
            np.minimum(groups.numbers(divided), 2),
        ],
        axis=1,
    ).astype(np.int64)


def _label_like(seen: _Seen) -> Flags:
    """Whether a token may label an option: one letter or digit before a mark, or a digit in a circle."""
    signs, lengths = seen.tokens.signs, seen.tokens.ends - seen.tokens.starts
    closing = np.array([*(sign in ").:]）．、】" for sign in signs[1:]), False])
    letters = np.array([sign.isalnum() for sign in signs])
    circled = np.array(["\u2460" <= sign <= "\u2473" for sign in signs])
    labels: Flags = ((lengths == 1) & letters & closing) | circled
    return labels


def _clause_rows(seen: _Seen) -> Rows:
    groups, tokens = seen.clauses, seen.tokens
    sentence, state = tokens.sentence[groups.first], seen.token_state[groups.first]
    same = groups.of[:-1] == groups.of[1:]
    table = _Table(groups.count, 200)
    table.bag(groups.of, seen.words, 0.8)
    table.bag(groups.of, seen.words, 0.8, seen.token_state)
    table.bag(groups.of, seen.beginnings, 0.5)
    table.bag(groups.of[:-1][same], seen.pairs[same], 0.4)
    table.bag(groups.of[seen.gram_token], seen.grams, 0.6, seen.token_state[seen.gram_token])
    first, first_two, last_two, last = seen.edges(groups)
    for hashes, weight in (
        (first, 0.6),
        (first_two, 0.5),
        (last, 0.5),
        (last_two, 0.4),
        (seen.endings[np.maximum(groups.last - 1, groups.first)], 0.4),
        (seen.beginnings[groups.first], 0.4),
        (_moved(first, 1, sentence), 0.5),
        (_moved(first, -1, sentence), 0.4),
        (_moved(last, -1, sentence), 0.4),
        (_moved(last, 1, sentence), 0.4),
        (_moved(first_two, 1, sentence), 0.4),
    ):
        table.each(hashes, weight, state)
    number = np.arange(groups.count)
    from_start = np.minimum(number - np.searchsorted(sentence, sentence), 2)
    from_end = np.minimum(np.searchsorted(sentence, sentence, side="right") - 1 - number, 2)
    digits, marked = np.minimum(groups.numbers(seen.digits), 2), groups.numbers(seen.marks) > 0
    asking = (groups.numbers(seen.asking) > 0).astype(np.int64)
    around = 4 * asking + 2 * np.append(asking[1:], 0) + np.append(0, asking[:-1])
    length = _log2(groups.lengths, 4)
    place = from_start + 3 * from_end
    for keys in (
        place,
        digits,
        marked * 2 + asking,
        length,
        around,
        place + 9 * (digits + 3 * (marked + 2 * length)),
    ):
        table.key(keys * _MANY + state, 0.8)
    return table.rows()


def _token_rows(seen: _Seen) -> Rows:
    sentence, state, count = seen.tokens.sentence, seen.token_state, len(seen.words)
    table = _Table(count, 300)
    for by, weight in ((0, 0.5), (-1, 0.4), (1, 0.4), (-2, 0.3), (2, 0.3)):
        hashes = _moved(seen.words, by, sentence) if by else seen.words
        table.each(hashes, weight)
        table.each(hashes, weight, state)
    table.each(seen.endings, 0.3)
    table.each(seen.beginnings, 0.3)
    table.each(_moved(seen.endings, 1, sentence), 0.2, state)
    table.each(_moved(seen.endings, -1, sentence), 0.2, state)
    table.key(seen.ahead * _MANY + state, 0.6)
    table.each(seen.words, 0.4, seen.ahead)
    for by, weight in ((0, 0.5), (-1, 0.4), (1, 0.4)):
        table.each(_moved(seen.kinds, by, sentence) if by else seen.kinds, weight, state)
    to_end = np.minimum(seen.sentences.last[sentence] - np.arange(count), 8)
    asks_here = seen.clauses.numbers(seen.asking)[seen.clauses.of] > 0
    table.key((seen.ahead * 2 + asks_here) * _MANY + to_end, 0.4)
    ruled = seen.ruled.astype(np.uint64)
    for by in (0, -1, 1):
        table.each(_moved(ruled, by, seen.tokens.text) if by else ruled, 0.6, state)
    table.key(seen.ruled * _MANY + seen.roles, 0.6)
    return table.rows()


def _border_rows(seen: _Seen) -> Rows:
    tokens, text, count = seen.tokens, seen.tokens.text, len(seen.words)
    begins_sentence = np.append(True, tokens.sentence[1:] != tokens.sentence[:-1])
    begins_clause = np.append(True, tokens.clause[1:] != tokens.clause[:-1])
    kind = tokens.gap + 4 * begins_sentence + 8 * begins_clause
    ruled = seen.ruled + 3 * np.append(0, seen.ruled[:-1])
    before, ending = _moved(seen.words, -1, text), _moved(seen.endings, -1, text)
    into_clause = np.minimum(np.arange(count) - seen.clauses.first[seen.clauses.of], 3)
    table = _Table(count, 400)
    for keys, weight in (
        (kind, 1.0),
        (kind * _MANY + seen.token_state, 1.0),
        (kind * _MANY + seen.roles, 1.0),
        (ruled, 1.0),
        (ruled * _MANY + kind, 1.0),
        (kind * 8 + seen.ahead, 0.6),
        (into_clause * _MANY + seen.ahead, 0.4),
    ):
        table.key(keys, weight)
    table.each(seen.kinds, 0.6, kind)
    table.each(seen.kinds, 0.6, kind * 8 + seen.ahead)
    table.each(_moved(seen.kinds, 1, text), 0.4, kind)
    table.each(_moved(seen.kinds, -1, text), 0.4, kind)
    table.each(before, 0.6)
    table.each(before, 0.5, kind)
    table.each(seen.words, 0.6)
    table.each(seen.words, 0.5, kind)
    table.each(ending, 0.4)
    table.each(seen.endings, 0.3)
    table.each(before * np.uint64(3) + seen.words, 0.5)
    table.each(_moved(seen.words, 1, text), 0.4, kind)
    table.each(_moved(seen.words, -2, text) * np.uint64(5) + before, 0.4)
    return table.rows()
