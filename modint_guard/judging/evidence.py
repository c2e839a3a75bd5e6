"""Which tokens of an answer say something: all of a text; of JSON those within its leaf values.

Keys, quotation marks and brackets of a JSON document are its form, which the request asked for. Of tool calls
only the values of their arguments count (`chat.tool_calls`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modint_guard.chat.json_leaves import leaves_in
from modint_guard.chat.reply import answer_positions
from modint_guard.chat.token_places import holding, places_of
from modint_guard.chat.words import words_in
from modint_guard.types import Leaf, Piece, Reply


@dataclass(frozen=True, slots=True)
class Evidence:
    """What counts of an answer that was scored as a whole.

    tokens: the indices among `answer_positions`, in order. places: where each of these tokens stands in the
    answer's text. leaves: the leaf of a JSON document that each of these tokens
    belongs to; None for any other text.
    """

    tokens: tuple[int, ...]
    places: tuple[Piece, ...]
    leaves: tuple[Leaf, ...] | None = None


def evidence_of(answer: Reply) -> Evidence:
    """What counts of an answer: nothing of a JSON document without values. If it is not known where its
    tokens stand, all of them do, and there are no places.
    """
    positions = answer_positions(answer)
    places = places_of(positions, answer.text)
    if places is None:
        return Evidence(tuple(range(len(positions))), ())
    leaves = leaves_in(answer.text) if answer.leaves is None else answer.leaves
    if leaves is None:
        return Evidence(tuple(range(len(places))), tuple(places))
    pieces = [(leaf.start, leaf.end) for leaf in leaves]
    found = [(t, place, holding(pieces, place)) for t, place in enumerate(places)]
    inside = [(t, place, leaves[index]) for t, place, index in found if index is not None]
    return (
        Evidence(*(tuple(column) for column in zip(*inside, strict=True))) if inside else Evidence((), (), ())
    )


def tokens_by_word(
    text: str, within: Piece, tokens: Sequence[int], places: Sequence[Piece]
) -> list[tuple[Piece, list[int]]]:
    """The words of one piece of a text, in order, each with the tokens that belong to it: those that have a
    part in it, and those that follow it and have a part in none, as a comma.

    tokens: indices of `places`, in order.
    """
    start, end = within
    pieces = [
        (start + a, start + b) for a, b in words_in(text[start:end], [places[t][0] - start for t in tokens])
    ]
    if not pieces:
        return []
    members: list[list[int]] = [[] for _ in pieces]
    before = 0
    for t in tokens:
        index = holding(pieces, places[t])
        before = before if index is None else index
        members[before].append(t)
    return [(piece, inside) for piece, inside in zip(pieces, members, strict=True) if inside]


def going_on(text: str, evidence: Evidence) -> frozenset[int]:
    """Of the tokens that count those that go on with a word which one before began, punctuation behind it
    included, by their indices among them; none if it is not known where they stand.
    """
    everything = list(range(len(evidence.places)))
    groups = [((0, len(text)), everything)] if evidence.leaves is None else _by_leaf(evidence.leaves)
    found: set[int] = set()
    for within, tokens in groups:
        for piece, inside in tokens_by_word(text, within, tokens, evidence.places):
            first = next((t for t in inside if _has_part(evidence.places[t], piece)), None)
            found.update(t for t in inside if first is not None and t > first)
    return frozenset(found)


def _has_part(place: Piece, piece: Piece) -> bool:
    return max(place[0], piece[0]) < min(place[1], piece[1])


def _by_leaf(leaves: Sequence[Leaf]) -> list[tuple[Piece, list[int]]]:
    """Each leaf with its tokens."""
    tokens: dict[Leaf, list[int]] = {}
    for t, leaf in enumerate(leaves):
        tokens.setdefault(leaf, []).append(t)
    return [((leaf.start, leaf.end), of_leaf) for leaf, of_leaf in tokens.items()]
