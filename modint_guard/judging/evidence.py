"""Which tokens of an answer say something: all of a text; of JSON those within its leaf values.

Keys, quotation marks and brackets of a JSON document are its form, which the request asked for. Of tool calls
only the values of their arguments count (`chat.tool_calls`).
"""

from __future__ import annotations

from dataclasses import dataclass

from modint_guard.chat.json_leaves import leaves_in
from modint_guard.chat.reply import answer_positions
from modint_guard.chat.token_places import holding, places_of
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
