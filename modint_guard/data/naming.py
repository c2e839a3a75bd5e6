"""Whether a reply in words of its own names what it ought to name, and nothing else in its place."""

import json
import re
from collections.abc import Sequence
from typing import Any

_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])")
_DENIED = re.compile(r"\b(?:not|no|never|neither|nor|without|cannot|\w+n't)\b[^.;,!?]*$")
_UNDECIDED = re.compile(r"\b(?:or|either)\b")


def names(reply: str, accepted: Sequence[str], rejected: Sequence[str] = ()) -> bool:
    """Whether `reply` names one of `accepted` and none of `rejected`, capitals and plurals aside.

    Names are whole words; where one lies within another the longer counts ("teddy bear" names no bear).
    "a and b" among the accepted wants both, in any order. A number is the last one that the reply gives.
    A denied name ("not a fox") is none, and a reply with "or" in it has not decided.
    """
    text = value_in(reply).casefold().replace("’", "'")
    numbers = _NUMBER.findall(text)
    if numbers and (wanted := [float(name) for name in accepted if _NUMBER.fullmatch(name)]):
        return float(numbers[-1]) in wanted
    named = _named(text, [*_parts(accepted), *rejected])
    if _UNDECIDED.search(text) or named & {name.casefold() for name in rejected}:
        return False
    return any({part.casefold() for part in _parts([name])} <= named for name in accepted)


def value_in(reply: str) -> str:
    """The values of a reply that is a JSON object, one after another; any other reply as it is."""
    braces = _OBJECT.search(reply)
    try:
        values = _values(json.loads(braces[0])) if braces else []
    except (ValueError, RecursionError):
        return reply
    return ", ".join(values) or reply


def _values(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for each in inner for text in _values(each)]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [] if value is None else [str(value)]


def _parts(accepted: Sequence[str]) -> list[str]:
    return [part for name in accepted for part in name.split(" and ")]


def _named(text: str, every: Sequence[str]) -> set[str]:
    """Those of the names that stand in the reply, undenied, each place counted for the longest that fits."""
    forms = sorted({name.casefold() for name in every if name}, key=len, reverse=True)
    if not forms:
        return set()
    pattern = "|".join(rf"(?P<n{place}>{_form(name)})" for place, name in enumerate(forms))
    places = re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", text)
    return {
        forms[int((match.lastgroup or "n0")[1:])]
        for match in places
        if not _DENIED.search(text[: match.start()])
    }


def _form(name: str) -> str:
    return r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", name))) + r"(?:s|es)?"
