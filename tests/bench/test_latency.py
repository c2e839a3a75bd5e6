"""Latency: arrivals, turns, streams and figures by hand; no time is asserted."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from bench.detection.inputs import WORLDS, World
from bench.latency.client import Told, asking, read_stream
from bench.latency.figures import GOALS, goals, ratio_interval, rows_of
from bench.latency.loads import FULL_LOAD, Timed, arrivals, full_load, in_turns, open_loop
from bench.latency.measure import FEWEST, FULL_REQUESTS, TOKENS, Lengths, measure, two_cores, where
from bench.latency.pinning import move
from bench.latency.requests import ARMS, MODELS, OFF, ON, TENTH, Request, drawn, request_pool
from modint_guard.data.perturb import seeded
from modint_guard.errors import EndpointError
from modint_guard.types import JSON
from modint_server.request.sampling import Sample

PROBES = [{"tokens": 30, "cached_tokens": 10}, {"tokens": 20, "cached_tokens": 0}]
JUDGED: JSON = {"verdict": "pass", "method": "teacher_forced", "probes": PROBES}


def bodies() -> Iterator[JSON]:
    """Bodies without pictures."""
    return ({"messages": [number], "modint": {"relevant": "image"}} for number in range(10_000))


def timed(*ms: float, streamed: bool = False, modint: JSON | None = None) -> list[Timed]:
    return [Timed(streamed, each, each / 2 if streamed else None, modint or {}) for each in ms]


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_no_item_comes_twice_and_all_say_what_is_relevant(world: World) -> None:
    found = list(islice(request_pool(world, 0), 400))
    assert len({str(body["messages"]) for body in found}) == 400
    assert {body["model"] for body in found} == {MODELS[world]}
    assert {body["modint"]["relevant"] for body in found} == {"image", "text", "both"}


def test_the_arms_differ_in_the_guard_alone() -> None:
    off, on, tenth = (drawn(bodies(), 40, 32, arm) for arm in ARMS)
    assert [request.body["modint"].pop("mode") for request in off] == ["off"] * 40
    assert [request.body["modint"].pop("mode") for request in on] == ["on"] * 40
    assert off == on == tenth


def test_every_answer_has_the_length_of_its_row_and_every_other_one_is_streamed() -> None:
    asked = drawn(bodies(), 4, 128, ON, first=6)
    assert [request.streamed for request in asked] == [False, True, False, True]
    assert all(request.body["min_tokens"] == request.body["max_tokens"] == 128 for request in asked)
    assert all("<|im_start|>" in request.body["bad_words"] for request in asked)  # cannot be scored


def test_the_gateway_draws_a_tenth_of_whole_and_of_streamed_answers() -> None:
    sample = Sample(0.1)
    taken = [request for request in drawn(bodies(), 200, 32, TENTH) if sample.takes(request.headers)]
    assert len(taken) == 20
    assert sum(request.streamed for request in taken) == 10
    later = drawn(bodies(), 20, 32, TENTH, first=7)  # numbers count, not places in a block
    assert [sample.takes(request.headers) for request in later].index(True) == 6


# -- answers ---------------------------------------------------------------------------------------


async def lines(*events: bytes) -> AsyncIterator[bytes]:
    for event in events:
        yield b"data: " + event + b"\n"
        yield b"\n"


async def test_a_stream_is_timed_at_its_first_text_and_at_the_chunk_with_the_verdict() -> None:
    told = await read_stream(
        lines(
            b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}',
            b'{"choices": [{"delta": {"content": "red"}}]}',
            b'{"choices": [{"delta": {}, "finish_reason": "length"}], "modint": {"verdict": "pass"}}',
            b'{"choices": [], "usage": {}}',
            b"[DONE]",
        )
    )
    assert told.first is not None and told.first < told.ended
    assert told.modint == {"verdict": "pass"}


@pytest.mark.parametrize(
    "events",
    [
        [b'{"choices": [{"delta": {"content": "red"}}]}'],
        [b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}', b"[DONE]"],
        [b'{"error": {"message": "no"}}'],
    ],
)
async def test_a_stream_that_cannot_be_timed_ends_the_measurement(events: list[bytes]) -> None:
    with pytest.raises(EndpointError, match="cannot be counted"):
        await read_stream(lines(*events))


async def test_the_client_asks_a_server_and_takes_no_error_for_an_answer() -> None:
    seen = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append((body, request.headers["traceparent"]))
        if "no" in body:
            return web.Response(status=503)
        if not body.get("stream"):
            return web.json_response({"modint": JUDGED})
        text = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'
        return web.Response(body=text, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        ask = asking(session)
        whole, streamed = [await ask(request) for request in drawn(bodies(), 2, 32, ON)]
        with pytest.raises(EndpointError, match="503"):
            await ask(Request({"no": 1}, {"traceparent": "x"}))
    await runner.cleanup()
    assert (whole.first, whole.modint) == (None, JUDGED)
    assert streamed.first is not None and streamed.modint == {}
    assert [body["modint"]["mode"] for body, _ in seen[:2]] == ["on"] * 2
    assert len({trace for _, trace in seen}) == 3


# -- loads -----------------------------------------------------------------------------------------


def test_requests_come_at_their_rate_and_the_same_for_all_arms() -> None:
    due = list(islice(arrivals(4.0, seeded("a", 1)), 4000))
    assert due == list(islice(arrivals(4.0, seeded("a", 1)), 4000)) == sorted(due)
    gaps = np.diff([0.0, *due])
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.1)
    assert np.std(gaps) == pytest.approx(0.25, rel=0.1)  # exponential: as wide as it is long


async def test_blocks_of_the_arms_take_turns() -> None:
    seen = []

    async def block(arm: str, number: int) -> list[Timed]:
        seen.append((arm, number))
        return timed(float(number))

    found = await in_turns(block, 2)
    assert seen == [(OFF, 0), (ON, 0), (TENTH, 0), (TENTH, 1), (ON, 1), (OFF, 1)]
    assert [each.ms for each in found[ON]] == [0.0, 1.0]


async def test_a_full_engine_has_so_many_under_way_and_no_more() -> None:
    now, most = 0, 0

    async def ask(request: Request) -> Told:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01 if request.streamed else 0.0)
        now -= 1
        return Told(0.0, None, {"number": request.body["messages"][0]})

    await full_load(drawn(bodies(), 20, 32, OFF), ask, under_way=2)
    assert most == 2
    found = await full_load(drawn(bodies(), 100, 32, OFF), ask)
    assert [each.modint["number"] for each in found] == list(range(100))
    assert most == FULL_LOAD


async def test_in_open_loop_a_slow_answer_keeps_no_other_waiting() -> None:
    begun, released = [], asyncio.Event()

    async def ask(request: Request) -> Told:
        begun.append(request.body["messages"][0])
        if len(begun) == 6:
            released.set()
        await released.wait()
        return Told(asyncio.get_running_loop().time(), None, JUDGED)

    found = await open_loop(drawn(bodies(), 6, 32, ON), ask, rate=200.0, rng=seeded("b"))
    assert begun == [0, 1, 2, 3, 4, 5]
    assert [each.streamed for each in found] == [False, True] * 3
    assert [each.ms for each in found] == sorted((each.ms for each in found), reverse=True)


async def test_every_length_is_measured_below_its_capacity_and_at_it() -> None:
    asked: list[Request] = []

    async def ask(request: Request) -> Told:
        asked.append(request)
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.001)
        judged = request.body["modint"].get("mode") == "on"
        return Told(began + 0.002, began + 0.001, JUDGED if judged else {})

    rows = [row async for row in measure(bodies(), ask, Lengths(0.001, 2, 0))]
    assert [(row["load"], row["tokens"], row["delivery"], row["sample"]) for row in rows] == [
        *(
            ("open", tokens, delivery, sample)
            for tokens in TOKENS
            for sample in (1.0, 0.1)
            for delivery in ("whole", "streamed")
        ),
        *(("full", tokens, delivery, 1.0) for tokens in TOKENS for delivery in ("whole", "streamed")),
    ]
    first, last = rows[0], rows[-1]
    assert first["rate_per_s"] == pytest.approx(0.3 * first["capacity_per_s"])
    assert 2 * first["n"] == 2 * FEWEST  # two deliveries, two blocks
    assert last["rate_per_s"] is None and last["n"] == FULL_REQUESTS[128] / 2
    assert last["capacity_per_s"] == rows[4]["capacity_per_s"]
    assert len({str(request.body["messages"]) for request in asked}) == len(asked)
    assert {request.body["max_tokens"] for request in asked} == set(TOKENS) == set(FULL_REQUESTS)


# -- figures ---------------------------------------------------------------------------------------


def row_of(off: list[Timed], on: list[Timed], arm: str = ON, place: int = 0) -> dict[str, Any]:
    rows = list(rows_of({OFF: off, arm: on}, world="w", tokens=32, load="open"))
    return rows[place]


def test_the_figures_of_two_arms_by_hand() -> None:
    off = [*timed(10.0, 20.0, 30.0), *timed(1.0, streamed=True)]
    on = [*timed(11.0, 22.0, 44.0, modint=JUDGED), *timed(3.0, streamed=True)]
    whole, streamed = row_of(off, on), row_of(off, on, place=1)
    assert (whole["unguarded_ms_p50"], whole["guarded_ms_p50"], whole["ratio"]) == (20.0, 22.0, 1.1)
    assert (whole["n"], whole["judged"], whole["probes"], whole["probe_new_tokens"]) == (3, 1.0, 2.0, 40.0)
    assert whole["ratio_low"] <= 1.1 <= whole["ratio_high"]
    assert whole["guarded_first_ms_p50"] is None
    assert (streamed["n"], streamed["ratio"], streamed["judged"]) == (1, 3.0, 0.0)
    assert (streamed["unguarded_first_ms_p50"], streamed["guarded_first_ms_p50"]) == (0.5, 1.5)


def test_an_answer_without_a_verdict_counts_as_not_judged() -> None:
    late = replace(timed(1.0)[0], modint={"verdict": "unscored", "probes": PROBES})
    by_first_word = timed(1.0, modint={**JUDGED, "method": "first_token"})
    stream = timed(1.0, streamed=True)
    row = row_of(
        [*timed(1.0, 1.0, 1.0, 1.0), *stream],
        [late, late, *timed(1.0, modint=JUDGED), *by_first_word, *stream],
    )
    assert (row["judged"], row["scored_whole"]) == (0.5, 0.25)


@pytest.mark.parametrize(("arm", "most"), [(ON, 1.15), (TENTH, 1.03)])
def test_a_goal_is_met_up_to_its_bound(arm: str, most: float) -> None:
    off = [*timed(1000.0), *timed(1000.0, streamed=True)]
    on = [*timed(1000 * most), *timed(1000 * most + 1, streamed=True)]
    rows = list(rows_of({OFF: off, arm: on}, world="w", tokens=32, load="open"))
    found = goals([*rows, *({**row, "load": "full"} for row in rows)])
    assert [row["met"] for row in found] == ["yes", "no"]
    assert f"at most {most} times" in found[0]["goal"] and found[0]["figure"].startswith(f"{most:.3f} [")
    assert set(GOALS.values()) == {1.15, 1.03}


def test_equal_times_leave_no_doubt_of_the_ratio() -> None:
    assert ratio_interval([10.0] * 5, [12.0] * 5) == (1.2, 1.2)


def test_what_delays_both_requests_of_a_pair_widens_no_interval() -> None:
    off = [10.0, 1000.0, 20.0, 400.0, 90.0]
    assert ratio_interval(off, [1.1 * ms for ms in off]) == pytest.approx((1.1, 1.1))


# -- cores -----------------------------------------------------------------------------------------


def test_one_core_is_shared_and_said_to_be() -> None:
    assert two_cores([3, 5, 7]) == (3, 7)
    assert two_cores([3]) == (3, 3)
    assert "to another" in where((3, 7), 0.1) and "took 10% of them" in where((3, 7), 0.1)
    assert "one core only" in where((3, 3), 0.0)


def test_a_process_is_moved_with_all_its_threads_and_without_its_children() -> None:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("needs two cores")
    script = (
        "import subprocess, sys, threading; threading.Thread(target=threading.Event().wait, daemon=True)"
        ".start(); child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE); "
        "print(child.pid, flush=True); input(); child.communicate(b'x')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        child = int(process.stdout.readline())
        move(process.pid, usable[0])
        threads = [int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir()]
        assert len(threads) == 2
        assert all(os.sched_getaffinity(thread) == {usable[0]} for thread in threads)
        assert os.sched_getaffinity(child) == set(usable)
        process.communicate(b"x\n")
