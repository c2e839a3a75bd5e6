"""The arguments of tool calls, found where the model wrote them.

An engine parses what a model writes into calls, and every model writes them in a form of its own. What is
scored is what was written, so the values of the arguments are looked for in that: the whole document as it
is, or else one value after the other, each behind its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from modint_guard.chat.json_leaves import leaves_in
from modint_guard.chat.token_places import bytes_of, places_of
from modint_guard.types import Leaf, Reply


class Arguments:
    """Collects the arguments of tool calls, whole or in the pieces of a stream, by the index of the call."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[str]] = {}

    def feed(self, message: Mapping[str, Any]) -> None:
        """Add those of a message, or of the delta of a chunk; a call of another shape has none."""
        calls = message.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            told = call if isinstance(call, dict) else {}
            function, index = told.get("function"), told.get("index")
            arguments = function.get("arguments") if isinstance(function, dict) else None
            pieces = self._pieces.setdefault(index if isinstance(index, int) else place, [])
            pieces.append(arguments if isinstance(arguments, str) else "")

    def all(self) -> tuple[str, ...]:
        """The arguments of each call, in order."""
        return tuple("".join(self._pieces[index]) for index in sorted(self._pieces))


def as_written(answer: Reply) -> Reply:
    """An answer of tool calls as the text that the model wrote, up to the last value of their arguments, with
    these values as its leaves. As it was, if there are no values or if they are not found in what was
    written; so is one behind reasoning.
    """
    written = b"".join(map(bytes_of, answer.positions)).decode(errors="replace")
    leaves, places = _leaves(written, answer.calls), places_of(answer.positions, written)
    if not leaves or places is None or answer.reasoning:
        return answer
    last = next(t for t, (_, end) in enumerate(places) if end >= leaves[-1].end)
    first = next(t for t, (_, end) in enumerate(places) if written[:end].strip())
    return replace(
        answer,
        text=written[: places[last][1]],
        token=answer.positions[first].token,
        top=answer.positions[first].top,
        positions=answer.positions[: last + 1],
        skip=None,
        leaves=leaves,
    )


def _leaves(written: str, calls: Sequence[str]) -> tuple[Leaf, ...]:
    """The values in the arguments of all calls, in order; empty if one of them is not found."""
    found: list[Leaf] = []
    for number, arguments in enumerate(calls):
        inside = _found(written, arguments, found[-1].end if found else 0)
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
