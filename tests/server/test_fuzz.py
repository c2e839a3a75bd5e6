"""A short run of the fuzzer, and the parsers under any input; the long run: `make bench-fuzz`."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.fuzz
from modint_guard import Guard
from modint_guard.chat.reply import StreamReply, reply_of, usage_of
from modint_guard.errors import EndpointError, RequestError
from modint_server.request import annotate
from modint_server.request.intake import read_chat, read_completion, read_document
from modint_server.request.sse import BrokenStreamError, Splitter, chunk_of, data_of
from modint_server.settings import Settings
from tests.server.fake_upstream import BASE
from tests.server.fuzz import Fuzz, Side

SETTINGS = Settings(upstream_url="http://engine")
KEYS = """choices message delta content logprobs token logprob top_logprobs usage prompt_tokens finish_reason
prompt_tokens_details index token_ids error x model messages role type text image_url url modint n prompt"""
NAMES = st.sampled_from(KEYS.split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=5)


@pytest.mark.parametrize("side", ["client", "engine"])
async def test_a_few_hundred_damaged_requests_break_nothing_and_lose_nothing(side: Side) -> None:
    fuzz = Fuzz(side, seed=7)
    row = await fuzz.run(300)
    assert fuzz.findings == {}
    assert (row.requests, row.tasks_left) == (300, 0)
    assert row.ok >= 50 and row.ok + row.refused + row.engine_error == 300


async def test_a_request_is_the_same_whenever_its_number_is_sent() -> None:
    rows = [await Fuzz("client", seed=3).run(20, first) for first in (40, 40, 60)]
    outcomes = [(row.ok, row.refused) for row in rows]
    assert outcomes[0] == outcomes[1] and sum(outcomes[2]) == 20


def test_a_long_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.fuzz, "BATCH", 20)
    sent: Any = {"output": tmp_path / "fuzz.json", "seed": 3, "processes": 1}
    assert bench.fuzz.measure_fuzz(**sent, bodies=40, replies=20, resume=False) == []
    seconds = [row["seconds"] for row in rows_of(tmp_path)]
    assert bench.fuzz.measure_fuzz(**sent, bodies=60, replies=20, resume=True) == []
    rows = rows_of(tmp_path)
    assert [row["seconds"] for row in rows[:3]] == seconds
    assert [(row["side"], row["first"]) for row in rows] == [
        ("client", 0),
        ("client", 20),
        ("engine", 0),
        ("client", 40),
    ]
    assert rows[2]["damaged_replies"] >= 10


def rows_of(folder: Path) -> Any:
    return json.loads((folder / "fuzz.json").read_text("utf-8"))["rows"]


@given(OBJECTS)
def test_a_reply_is_read_or_refused(document: dict[str, Any]) -> None:
    try:
        reply = reply_of(document)
    except EndpointError:
        return
    assert isinstance(reply.text, str) and reply.prompt_tokens >= 0


@given(st.lists(OBJECTS, max_size=4))
def test_chunks_are_read_or_refused(chunks: list[dict[str, Any]]) -> None:
    answer = StreamReply()
    for chunk in chunks:
        answer.feed(chunk)
        assert usage_of(chunk).completion_tokens >= 0
        annotate.has_text(chunk)
        if annotate.finishes(chunk):
            annotate.split_finish(chunk)
    try:
        assert isinstance(answer.reply().text, str)
    except EndpointError:
        return


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=30))
def test_a_stream_is_cut_alike_however_it_comes(data: bytes, sizes: list[int]) -> None:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    splitter = Splitter()
    events = [event for piece in [*pieces, data[at:]] for event in splitter.feed(piece)]
    assert data.startswith(b"".join(events))
    assert events == [*Splitter().feed(data)]
    for event in events:
        _read(event)


def _read(event: bytes) -> None:
    data = data_of(event)
    try:
        assert data is None or isinstance(chunk_of(data), dict)
    except (EndpointError, BrokenStreamError):
        return


@given(OBJECTS | st.binary(max_size=60))
def test_a_body_is_read_or_refused(document: Any) -> None:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    for read in (read_chat, read_completion):
        try:
            incoming = read(read_document(raw, SETTINGS), SETTINGS, lambda: BASE)
        except RequestError:
            continue
        assert orjson.loads(incoming.bytes()) == incoming.body
    try:
        Guard().plan(read_chat(read_document(raw, SETTINGS), SETTINGS, lambda: BASE).body)
    except RequestError:
        return
