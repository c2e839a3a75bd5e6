"""Objects and lists of a document, found without being read: what they hold is what a parser reads."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.brackets import DEEPEST, Container, container

SIGNS = st.text('"\\[]{},: aé\n', max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | SIGNS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SIGNS, inner, max_size=4),
)
DOCUMENTS = st.lists(VALUES) | st.dictionaries(SIGNS, VALUES)
PIECES = st.integers(1, 40)


def read(found: Any) -> Any:
    """A value with everything in it read."""
    if not isinstance(found, Container):
        return found
    if found.is_deepest:
        return orjson.loads(found.written)
    value = found.read()
    if isinstance(value, list):
        return [read(each) for each in value]
    return {name: read(each) for name, each in value.items()}


@given(DOCUMENTS, PIECES, st.booleans())
def test_a_document_holds_what_a_parser_reads(document: Any, piece: int, indented: bool) -> None:
    data = orjson.dumps(document, option=orjson.OPT_INDENT_2 if indented else None)
    assert read(container(data, piece)) == document


@given(DOCUMENTS, PIECES, st.data())
def test_a_damaged_document_is_refused_if_a_parser_refuses_it(
    document: Any, piece: int, data: st.DataObject
) -> None:
    damaged = bytearray(orjson.dumps(document))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from([*b'"\\[]{},: 1'])).to_bytes()
    raw = bytes(damaged)
    try:
        expected = orjson.loads(raw)
    except ValueError:
        expected = None
    if isinstance(expected, dict | list):
        assert read(container(raw, piece)) == expected
    else:
        with pytest.raises(ValueError):  # noqa: PT011 - orjson or the search for brackets says so
            read(container(raw, piece))


def test_only_the_outer_levels_are_told_apart() -> None:
    deep = orjson.loads(b"[" * (DEEPEST + 3) + b"7" + b"]" * (DEEPEST + 3))
    found = container(orjson.dumps(deep))
    assert len(found.at) == 2 * DEEPEST
    assert read(found) == deep


@pytest.mark.parametrize(
    "data", [b"", b"7", b'"[]"', b"[] []", b"}{", b"][", b"[1]x", b"\x0b[]", b"[", b'["]', b"[}", b"[1}{2]"]
)
def test_what_is_neither_an_object_nor_a_list_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - orjson or the search for brackets says so
        read(container(data))
