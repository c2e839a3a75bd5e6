"""An engine's document whose long lists stay as they were written until an entry is needed.

Log-probabilities are the bulk of an answer: with 20 alternatives 2 kB a token. Read as a whole they become
hundreds of thousands of objects, and no other thread runs while these are made or freed. In a large document
each entry of such a list is therefore found only (`msgspec.Raw`), and is read by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import orjson

from modint_guard.chat.brackets import Container, container

LARGE = 256 * 1024  # bytes; what is smaller is read as a whole, in at most two milliseconds
_UNREAD = ("logprobs", "prompt_logprobs")  # names of lists; the one of chat is `content` of `logprobs`
_raw = msgspec.json.Decoder(msgspec.Raw)


def loads(data: bytes) -> Any:
    """The JSON value in `data`; in a large one, entries of log-probabilities are not read. Raises ValueError
    for what is no JSON, and for a large one that is no object and no list.
    """
    return orjson.loads(data) if len(data) <= LARGE else _value(container(data), "", "")


def fields(data: bytes, *names: str) -> dict[str, Any]:
    """The fields of these names, as far as the JSON object in `data` has them; of a large one nothing else is
    read. Raises ValueError for what is no JSON object.
    """
    document = orjson.loads(data) if len(data) <= LARGE else container(data).read()
    if not isinstance(document, dict):
        raise ValueError("this is no JSON object")
    return {name: _value(document[name], "", name) for name in names if name in document}


def dumps(document: Any) -> bytes:
    """The document as JSON, with what was not read as it was written."""
    return orjson.dumps(document, default=_as_written)


def entries(listed: Any) -> Iterator[Any]:
    """The entries of a list, each read when it is its turn; none of None."""
    return (entry(each) for each in listed or ())


def entry(value: Any) -> Any:
    """An entry of a list, read if it was not. Raises ValueError for what is no JSON."""
    return orjson.loads(memoryview(value)) if isinstance(value, msgspec.Raw) else value


def changed(listed: Any, change: Callable[[Any], Any]) -> list[Any]:
    """The list with every entry changed; what was not read is written anew at once, so that the entries never
    lie in memory all together.
    """
    return [
        msgspec.Raw(orjson.dumps(change(entry(each)))) if isinstance(each, msgspec.Raw) else change(each)
        for each in listed or ()
    ]


def _value(found: Any, parent: str, name: str) -> Any:
    """parent, name: by which the value is called, and by which the object is that holds it."""
    if not isinstance(found, Container):
        return found
    if found.is_deepest or found.written.nbytes <= LARGE:
        return orjson.loads(found.written)
    document = found.read()
    if isinstance(document, dict):
        return {inner: _value(each, name, inner) for inner, each in document.items()}
    if name in _UNREAD or (parent, name) == ("logprobs", "content"):
        return [_checked(each) for each in document]
    return [_value(each, parent, name) for each in document]


def _checked(found: Any) -> Any:
    """An entry that stays unread, known to be JSON."""
    try:
        return _raw.decode(found.written) if isinstance(found, Container) else found
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc


def _as_written(value: Any) -> orjson.Fragment:
    if isinstance(value, msgspec.Raw):
        return orjson.Fragment(bytes(value))
    raise TypeError(f"{type(value).__name__} is not JSON")
