"""The leaf values of a JSON document and where each of them stands, by JSON pointer (RFC 6901).

`json` does not say where a value stood, so the text is read here, sign by sign and without recursion: a model
may nest as deeply as it likes. A document that was cut off is read as far as it goes.
"""

from __future__ import annotations

import json
import re

from modint_guard.types import Leaf

MAX_CHARACTERS = 100_000
_LITERAL = re.compile(r"true|false|null|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_FENCE = re.compile(r"\s*```[\w-]*[ \t]*\n(?P<inner>.*?)(?:\n```\s*|\Z)", re.S)
_SIGN = re.compile(
    r'\s*(?:(?P<text>"(?P<inner>(?:[^"\\]|\\.|\\\Z)*)"?)|(?P<mark>[\[\]{}:,])|(?P<bare>[^\s\[\]{}:,"]+))',
    re.S,
)


def leaves_in(text: str) -> tuple[Leaf, ...] | None:
    """The leaf values of a text that is a JSON object or array, in a code fence or not, except for empty
    strings; as far as it goes, if it was cut off. None for any other text, and for one that is very long.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    fence = _FENCE.fullmatch(text)
    start, end = fence.span("inner") if fence else (0, len(text))
    if text[start:end].lstrip()[:1] not in ("{", "["):
        return None
    return _read(text, start, end)


def _read(text: str, start: int, end: int) -> tuple[Leaf, ...] | None:
    leaves: list[Leaf] = []
    path: list[str | int] = []  # of the value that comes next: an index, or a key ("" before it is known)
    at, awaits_key, is_value_due, stop = start, False, True, len(text[:end].rstrip())
    while at < stop:
        sign = _SIGN.match(text, at, end)
        if sign is None:
            return None
        at = sign.end()
        mark = sign["mark"]
        if sign["text"] is not None and awaits_key:
            path[-1], awaits_key = _unquoted(sign["inner"]), False
        elif mark is None:
            if not is_value_due or awaits_key:
                return None
            if sign["bare"] and not _LITERAL.fullmatch(sign["bare"]) and at < stop:
                return None
            name = "inner" if sign["text"] is not None else "bare"
            if sign[name]:
                leaves.append(Leaf(*sign.span(name), _pointer(path)))
            is_value_due = False
        elif mark in "[{":
            if not is_value_due or awaits_key:
                return None
            path.append(0 if mark == "[" else "")
            awaits_key, is_value_due = mark == "{", mark == "["
        elif mark == ":":
            if not path or isinstance(path[-1], int) or is_value_due or awaits_key:
                return None
            is_value_due = True
        elif not path:
            return None
        elif mark == ",":
            last = path[-1]
            if isinstance(last, int):
                path[-1], is_value_due = last + 1, True
            else:
                path[-1], awaits_key, is_value_due = "", True, False
        else:
            if isinstance(path.pop(), int) != (mark == "]"):
                return None
            awaits_key = is_value_due = False
            if not path and text[at:end].strip():
                return None
    return tuple(leaves)


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def _unquoted(inner: str) -> str:
    try:
        return str(json.loads(f'"{inner}"', strict=False))
    except ValueError:
        return inner
