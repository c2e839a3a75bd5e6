"""The arguments of tool calls, found where the model wrote them, or where its template does.

An engine parses what a model writes into calls, and every model writes them in a form of its own. What is
scored is what was written, so the values of the arguments are looked for in that: the whole document as it
is, or else one value after the other, each behind its key. If it is not known what was written, the calls are
given back to the engine as a message, and the model's template writes them at the end of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from modint_guard.chat.json_leaves import leaves_in
from modint_guard.chat.token_places import bytes_of, places_of
from modint_guard.types import JSON, Call, Leaf, Position, Reply


class Calls:
    """Collects the tool calls of an answer, whole or in the pieces of a stream, by the index of the call."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[Call]] = {}

    def feed(self, message: Mapping[str, Any]) -> None:
        """Add those of a message, or of the delta of a chunk; one of another shape is a call of nothing."""
        calls = message.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            told = call if isinstance(call, dict) else {}
            function, index = told.get("function"), told.get("index")
            said = function if isinstance(function, dict) else {}
            name, arguments = (said.get(key) for key in Call._fields)
            piece = Call(*(each if isinstance(each, str) else "" for each in (name, arguments)))
            self._pieces.setdefault(index if isinstance(index, int) else place, []).append(piece)

    def all(self) -> tuple[Call, ...]:
        """The calls, in order."""
        return tuple(_joined(self._pieces[index]) for index in sorted(self._pieces))


def _joined(pieces: Sequence[Call]) -> Call:
    name = next((piece.name for piece in pieces if piece.name), "")
    return Call(name, "".join(piece.arguments for piece in pieces))


def as_written(answer: Reply) -> Reply:
    """An answer of tool calls as the text that the model wrote, up to the last value of their arguments, with
    these values as its leaves. As it was, if there are no values or if they are not found in what was
    written; nothing is in the way of judging one of which it is not known what was written (`is_rendered`).
    """
    written = b"".join(map(bytes_of, answer.positions)).decode(errors="replace")
    leaves, places = _leaves(written, answer.calls), places_of(answer.positions, written)
    if not leaves or places is None:
        return replace(answer, skip=None) if is_rendered(answer) else answer
    last = next(t for t, (_, end) in enumerate(places) if end >= leaves[-1].end)
    first = next(t for t, (_, end) in enumerate(places) if written[:end].strip())
    return replace(
        answer,
        text=written[: places[last][1]],
        start=0,
        token=answer.positions[first].token,
        top=answer.positions[first].top,
        positions=answer.positions[: last + 1],
        skip=None,
        leaves=leaves,
    )


def is_rendered(answer: Reply) -> bool:
    """Whether an answer has tool calls with values, and it is not known how the model wrote them."""
    return not answer.positions and any(leaves_in(call.arguments) for call in answer.calls)


def as_message(answer: Reply) -> JSON:
    """An answer of tool calls as the message in which a client gives it back."""
    calls = [  # some templates take ids of nine letters and digits only
        {"id": f"call{number:05}", "type": "function", "function": call._asdict()}
        for number, call in enumerate(answer.calls)
    ]
    return {"role": "assistant", "content": answer.text or None, "tool_calls": calls}


def as_rendered(answer: Reply, prompt: Sequence[Position]) -> Reply | None:
    """An answer of tool calls as the text that ends a prompt, from the name of the first call on, with the
    values of the arguments as its leaves; None if they are not found.

    prompt: the last positions of a prompt that ends in `as_message`.
    """
    written = b"".join(map(bytes_of, prompt)).decode(errors="replace")
    places, name, at = places_of(prompt, written), answer.calls[0].name, len(written)
    while name and places is not None and (at := written.rfind(name, 0, at)) >= 0:
        if leaves := _leaves(written[at:], answer.calls):
            first = next(t for t, (_, end) in enumerate(places) if end > at)
            begin = places[first][0]
            moved = at - begin
            return replace(
                answer,
                text=written[begin:],
                start=0,
                token=prompt[first].token,
                top=prompt[first].top,
                positions=tuple(prompt[first:]),
                skip=None,
                leaves=tuple(
                    leaf._replace(start=leaf.start + moved, end=leaf.end + moved) for leaf in leaves
                ),
            )
    return None


def _leaves(written: str, calls: Sequence[Call]) -> tuple[Leaf, ...]:
    """The values in the arguments of all calls, in order; empty if one of them is not found."""
    found: list[Leaf] = []
    for number, call in enumerate(calls):
        inside = _found(written, call.arguments, found[-1].end if found else 0)
        if inside is None:
            return ()
        path = f"/tool_calls/{number}/function/arguments"
        found += [leaf._replace(path=path + leaf.path) for leaf in inside]
    return tuple(found)


def _found(written: str, arguments: str, behind: int) -> list[Leaf] | None:
    """The values of one call's arguments in what was written behind a character; None if one is missing."""
    leaves = leaves_in(arguments)
    if leaves is None:
        return None
    whole = written.find(arguments, behind)
    if whole >= 0:
        return [Leaf(whole + each.start, whole + each.end, each.path, each.start) for each in leaves]
    found: list[Leaf] = []
    before: list[str] = []
    for leaf in leaves:
        steps = leaf.path.split("/")[1:]
        for old, key in zip_longest(before, steps):
            if key is None or key == old or key.isdecimal():
                continue
            at = written.find(key.replace("~1", "/").replace("~0", "~"), behind)
            if at < 0:
                return None
            behind = at + len(key)
        start = written.find(arguments[leaf.start : leaf.end], behind)
        if start < 0:
            return None
        behind, before = start + leaf.end - leaf.start, steps
        found.append(Leaf(start, behind, leaf.path, leaf.start))
    return found
