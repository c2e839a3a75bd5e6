"""The benchmark of the gateway counts what it says: answers, CPU of processes, and the goals' figures."""

import asyncio
import json
import os
import time

import pytest

from bench.gateway.engine import WORDS, answer, completion
from bench.gateway.load import loaded
from bench.gateway.measure import (
    BARE,
    JUDGED,
    LITE,
    MEASURED,
    OURS,
    PICTURE,
    PICTURE_BYTES,
    SMALL,
    Run,
    busy_share,
    cpu_s,
    figures,
    goals,
    request,
)
from modint_guard.chat.images import check_data_url
from modint_guard.chat.reply import reply_of


async def test_the_load_counts_every_answer_of_the_engine() -> None:
    asked = []

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer)
        await answer(reader, writer)

    async with await asyncio.start_server(counted, "127.0.0.1", 0, limit=8 * 2**20) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        found = await loaded(url, json.dumps(request(PICTURE)).encode(), 0.3, 3)
    assert len(asked) == 3
    assert found["n"] == len(found["ms"])
    assert found["n"] > 3


async def test_an_answer_that_is_none_ends_the_measurement() -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refusing, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ValueError, match="no answer that can be counted"):
            await loaded(url, b"{}", 0.3, 1)


def test_the_engine_gives_probabilities_where_they_are_asked_for() -> None:
    reply = reply_of(completion(logprobs=True))
    assert reply.top is not None and len(reply.top) == len(WORDS) == 20
    assert reply_of(completion(logprobs=False)).top is None


def test_the_picture_has_the_size_that_the_table_names() -> None:
    url = request(PICTURE)["messages"][0]["content"][0]["image_url"]["url"]
    assert check_data_url(url) == (1600, 1200)
    assert PICTURE_BYTES <= len(url) * 3 // 4 <= 1.1 * PICTURE_BYTES


def test_the_cpu_of_a_process_and_of_its_children_is_counted() -> None:
    before = cpu_s(os.getpid())
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    assert 0.15 <= cpu_s(os.getpid()) - before < 5
    assert cpu_s(None) == 0
    assert 0 <= busy_share(sorted(os.sched_getaffinity(0))[:1], 0.1) <= 1


def test_goals_compare_with_the_proxy_and_say_what_was_missed() -> None:
    per_s = {BARE: 3000.0, LITE: 50.0, OURS: 800.0, JUDGED: 100.0}
    runs = {(arm, load): [Run(per_s[arm], 4.0, 9.0), Run(per_s[arm], 2.0, 9.0)] for arm, load in MEASURED}
    runs[BARE, SMALL] = [Run(2000.0, 0.0, 1.0)]
    rows = figures(runs)
    assert [row["added_ms"] for row in rows if row["of"] == OURS] == [8.0, 0.0]
    assert [row["engine_limit"] for row in rows if row["of"] == OURS] == [True, False]
    said = [(goal["figure"], goal["met"]) for goal in goals(rows)]
    assert said == [("16.0", "yes"), ("16.0", "yes"), ("2.0", "no"), ("3.0", "yes"), ("3.0", "yes")]
