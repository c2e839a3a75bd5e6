"""The leaf values of a JSON document, by place and by JSON pointer."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.json_leaves import MAX_CHARACTERS, leaves_in

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.lists(VALUES, max_size=4) | st.dictionaries(st.text(), VALUES, max_size=4)


def at(document: Any, pointer: str) -> Any:
    """RFC 6901."""
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def count(document: Any) -> int:
    if isinstance(document, dict | list):
        return sum(map(count, document.values() if isinstance(document, dict) else document))
    return int(document != "")


@given(DOCUMENTS, st.sampled_from([None, 2]), st.booleans())
def test_every_leaf_is_found_where_it_is_written(document: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    leaves = leaves_in(text)
    assert leaves is not None and len(leaves) == count(document)
    for leaf in leaves:
        value, said = at(document, leaf.path), text[leaf.start : leaf.end]
        assert json.loads(f'"{said}"' if isinstance(value, str) else said) == value


@given(DOCUMENTS, st.integers(0, 40))
def test_a_document_that_was_cut_off_is_read_as_far_as_it_goes(document: Any, cut: int) -> None:
    text = json.dumps(document)
    whole, part = leaves_in(text), leaves_in(text[: max(1, len(text) - cut)])
    assert whole is not None and part is not None
    assert [leaf.path for leaf in part] == [leaf.path for leaf in whole][: len(part)]


def test_a_document_in_a_code_fence_is_read_too() -> None:
    text = '```json\n{"colour": "red"}\n```'
    assert leaves_in(text) == ((text.index("red"), text.index("red") + 3, "/colour", None),)
    assert leaves_in('```\n["a"') == ((6, 7, "/0", None),)


@pytest.mark.parametrize(
    "text",
    [
        "red",
        '"red"',
        "12",
        "",
        "[red]",
        "[1] A cat.",
        "[a link](here)",
        "{x} is a set",
        '{"a" 1}',
        '{"a": 1 2}',
        "[1}",
        '{"a": 1}}',
        '{1: "a"}',
        "[1, 2] and more",
    ],
)
def test_what_is_no_json_document_has_no_leaves(text: str) -> None:
    assert leaves_in(text) is None


def test_a_very_long_document_is_not_read() -> None:
    assert leaves_in(json.dumps(["red"] * MAX_CHARACTERS)) is None


def test_keys_are_written_as_a_pointer_has_them() -> None:
    leaves = leaves_in('{"a/b": {"~": [1, {"\\u00e9": true}]}}')
    assert leaves is not None and [leaf.path for leaf in leaves] == ["/a~1b/~0/0", "/a~1b/~0/1/é"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"a": {}, "b": [""]}', "{"])
def test_a_document_without_values_has_none(text: str) -> None:
    assert leaves_in(text) == ()


@pytest.mark.parametrize(
    "text", ["[" * 50_000, '{"a":' * 20_000, '"\\' * 50_000, '["' + "\\" * 50_000, "```" * 50_000]
)
def test_hostile_documents_are_read_quickly(text: str) -> None:
    start = time.perf_counter()
    leaves_in(text)
    assert time.perf_counter() - start < 2.0
