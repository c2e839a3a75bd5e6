"""Moves the edges of contexts to where a text can be cut and still be read.

    <note>It is a cat.</note> What is it?        both tags go with what they hold
    If Tom has 3 apples, how many has he?        so do the conjunction and the comma of a clause

Everything takes time linear in the text.
"""

from __future__ import annotations

import re

import numpy as np

from modint_guard.chat.split_features import Flags
from modint_guard.chat.tokens import Tokens

_TAG = re.compile(r"<(/?)([^\W\d][\w.:-]{0,40})[^<>\n]{0,200}>")
_JOINTS = frozenset(",;，、；–—")
# Words that begin a clause and mean nothing without it.
_CONJUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        "if when since as because given considering knowing assuming suppose supposing imagine while "
        "although though that wenn falls da weil angenommen dass obwohl si comme puisque sachant que "
        "étant donné supposons como dado puesto ya porque sabiendo suponiendo se poiché dato che siccome "
        "sapendo sabendo supondo als omdat gegeven dat jeśli skoro ponieważ gdy że om eftersom när att "
        "если поскольку так как когда что",
    )
)
_MOST = 4  # conjunctions before a clause
_MOST_MARKS = 16  # behind the last clause of a sentence


def with_whole_clauses(flags: Flags, tokens: Tokens, whole: str) -> Flags:
    """The same labels, but a tag goes with what it holds, a conjunction and a comma with their clause.

    flags: which tokens are context. whole: the string that they are tokens of.
    """
    moved = flags.copy()
    _label_tags(moved, tokens, whole)
    starts = np.flatnonzero(moved & ~np.append(False, moved[:-1]))
    for start in starts.tolist():
        _label_joints(moved, tokens, whole, start)
    return moved


def _label_tags(flags: Flags, tokens: Tokens, whole: str) -> None:
    """Give both tags of a pair the label of the tokens between them, if those have the same."""
    opened: dict[str, tuple[int, int]] = {}
    for tag in _TAG.finditer(whole):
        closes, name = tag.groups()
        if not closes:
            opened[name] = tag.span()
        elif name in opened:
            start, inside = opened.pop(name)
            first, begin, end, last = np.searchsorted(tokens.starts, [start, inside, tag.start(), tag.end()])
            is_one_text = begin < end and tokens.text[first] == tokens.text[last - 1]
            if is_one_text and flags[begin:end].all() | ~flags[begin:end].any():
                flags[first:begin] = flags[end:last] = flags[begin]


def _label_joints(flags: Flags, tokens: Tokens, whole: str, start: int) -> None:
    """Let the context that starts at a token begin and end where its clause does: with the conjunctions
    before it, if it ends the clause, and with the marks that only set it apart.
    """
    first, last = np.searchsorted(tokens.sentence, [tokens.sentence[start], tokens.sentence[start] + 1])
    end = start + int(np.append(flags[start:last], False).argmin())
    before = start
    while first < before and start - before < _MOST and _word(tokens, whole, before - 1) in _CONJUNCTIONS:
        before -= 1
    is_last = last - end <= _MOST_MARKS and not any(mark.isalnum() for mark in tokens.signs[end:last])
    is_set_apart = end < last and tokens.signs[end] in _JOINTS
    ends_clause = is_last or is_set_apart or tokens.signs[end - 1] in _JOINTS
    if not ends_clause:
        return
    flags[before:start] = True
    is_joined = before > first and tokens.signs[before - 1] in _JOINTS
    if is_joined:
        flags[before - 1] = True
    if is_set_apart and not is_last and (is_joined or before == first):
        flags[end] = True


def _word(tokens: Tokens, whole: str, number: int) -> str:
    return whole[tokens.starts[number] : tokens.ends[number]].lower()
