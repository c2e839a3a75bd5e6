"""Pieces that work on bytes and documents alone: events, depth, headers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.errors import EndpointError
from modint_server.request.annotate import sanitised, split_finish
from modint_server.request.intake import too_deep
from modint_server.request.sse import MAX_EVENT_BYTES, BrokenStreamError, Splitter, chunk_of, data_of, frame

EVENTS = st.lists(
    st.sampled_from([b"data: {}\n\n", b": ping\n\n", b"data: a\r\n\r\n", b"event: x\ndata: b\n\n"])
)


@given(EVENTS, st.lists(st.integers(min_value=1, max_value=7)))
def test_however_a_stream_is_cut_its_events_are_the_same(events: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(events)
    parsed: list[bytes] = []
    splitter, at = Splitter(), 0
    for size in [*sizes, len(stream) + 1]:
        parsed += splitter.feed(stream[at : at + size])
        at += size
    assert parsed == events


def test_data_lines_are_joined_and_comments_have_none() -> None:
    assert data_of(b"data: a\ndata:b\n\n") == b"a\nb"
    assert data_of(b": ping\n\n") is None
    assert frame({"a": 1}) == b'data: {"a":1}\n\n'


@pytest.mark.parametrize("data", [b"{", b"[]", b"5"])
def test_data_that_is_no_object_breaks_the_stream(data: bytes) -> None:
    with pytest.raises(EndpointError, match="the data of an event is no JSON"):
        chunk_of(data)


def test_an_event_without_an_end_is_given_up() -> None:
    splitter = Splitter()
    assert list(splitter.feed(b"x" * MAX_EVENT_BYTES)) == []
    with pytest.raises(BrokenStreamError, match="longer than"):
        list(splitter.feed(b"x"))


@pytest.mark.parametrize(("document", "levels"), [({}, 1), ({"a": "x"}, 1), ({"a": [1]}, 2), ([[["x"]]], 3)])
def test_depth_counts_containers(document: Any, levels: int) -> None:
    assert not too_deep(document, levels)
    assert too_deep(document, levels - 1)


@given(st.text(), st.integers(min_value=0, max_value=50))
def test_header_values_are_bounded_printable_ascii(value: str, limit: int) -> None:
    safe = sanitised(value, limit)
    assert len(safe) <= limit
    assert all(" " <= character <= "~" for character in safe)


def test_a_finish_without_text_is_held_as_it_is() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]}
    assert split_finish(chunk) == (None, chunk)


def test_a_finish_with_text_is_cut_in_two_and_loses_nothing() -> None:
    logprobs = {"content": [{"token": "x"}]}
    choice = {
        "index": 0,
        "delta": {"content": "x"},
        "logprobs": logprobs,
        "finish_reason": "stop",
        "stop_reason": 2,
    }
    text, finish = split_finish({"id": "1", "choices": [choice], "usage": {"total_tokens": 1}})
    first = {"index": 0, "delta": {"content": "x"}, "logprobs": logprobs, "finish_reason": None}
    assert text == {"id": "1", "choices": [first]}
    held = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": 2}
    assert finish == {"id": "1", "choices": [held], "usage": {"total_tokens": 1}}
