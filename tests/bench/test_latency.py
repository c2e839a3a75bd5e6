"""Latency: arrivals, turns and figures by hand; no time is asserted."""

import asyncio
from itertools import islice
from typing import Any

import numpy as np
import pytest

from bench.latency import (
    ANSWERS,
    AT_ONCE,
    FULL_LOAD,
    FULL_REQUESTS,
    LONG,
    ONE,
    SHIPPED,
    Arm,
    arrivals,
    figures,
    full_load,
    goal,
    in_turns,
    measure,
    open_loop,
    ratio_interval,
    request_pool,
    stopping,
)
from bench.mitigation.tokens import PADDING
from modint_guard.data.perturb import seeded
from modint_guard.guard import Guard
from modint_guard.types import JSON
from tests.core.fakes import ask, world
from tests.core.test_calibration import made

PROBES = [{"tokens": 30, "cached_tokens": 10}, {"tokens": 20, "cached_tokens": 0}]


def arm(*ms: float, probes: int = 0) -> Arm:
    found = Arm()
    for each in ms:
        found.add({"modint": {"probes": PROBES[:probes]}} if probes else {}, each)
    return found


def test_requests_come_at_their_rate_and_the_same_for_both_arms() -> None:
    due = list(islice(arrivals(4.0, seeded("a", 1)), 4000))
    assert due == list(islice(arrivals(4.0, seeded("a", 1)), 4000)) == sorted(due)
    gaps = np.diff([0.0, *due])
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.1)
    assert np.std(gaps) == pytest.approx(0.25, rel=0.1)  # exponential: as wide as it is long


def test_no_item_comes_twice() -> None:
    found = list(islice(request_pool(0), 500))
    assert len({str(body["messages"]) for body in found}) == 500
    assert {body["modint"]["relevant"] for body in found} == {"image", "text", "both"}


def test_a_padded_prompt_begins_with_words_of_its_own_and_asks_the_same() -> None:
    short, padded = list(islice(request_pool(0), 100)), list(islice(request_pool(0, padded=True), 100))
    assert [body["messages"] for body in short] == [body["messages"][1:] for body in padded]
    assert len({body["messages"][0]["content"][:200] for body in padded}) == 100
    assert {len(body["messages"][0]["content"].split()) for body in padded} == {PADDING}


@pytest.mark.parametrize(
    ("views", "misled", "probes"), [(AT_ONCE, False, 3), (AT_ONCE, True, 3), (ONE, False, 1), (ONE, True, 1)]
)
async def test_a_calibration_that_stops_otherwise_asks_every_view_or_one(
    views: str, misled: bool, probes: int
) -> None:
    fitted = made().fitted["image"].model_copy(update={"bias": -3.0})  # nothing moves: a risk of 0.05
    own = stopping(made(fitted={"image": fitted}), views)
    says = world(both="blue" if misled else "red", image="red", text="blue", neither="green")
    body = ask("The ball is blue.\nWhat colour is the ball in the picture?")
    found = (await Guard(calibrations=[own]).inspect(body, says)).report
    assert len(found.probes) == probes
    assert found.verdict.state == ("flagged" if misled else "pass")


async def test_blocks_with_and_without_the_guard_take_turns() -> None:
    seen = []

    async def block(name: str, found: Arm, number: int) -> None:
        seen.append((name, number))
        found.add({}, float(number))

    arms = await in_turns(block, 2)
    assert seen == [("off", 0), ("on", 0), ("on", 1), ("off", 1)]
    assert arms["on"].ms == [0.0, 1.0]


async def test_a_full_engine_has_so_many_under_way_and_no_more() -> None:
    now, most = 0, 0

    async def complete(body: JSON) -> JSON:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return {}

    found = Arm()
    assert await full_load([{}] * 100, complete, found) > 0.0
    assert len(found.ms) == 100 and most == FULL_LOAD


async def test_in_open_loop_a_slow_answer_keeps_no_other_waiting() -> None:
    begun, released = [], asyncio.Event()

    async def complete(body: JSON) -> JSON:
        begun.append(body["n"])
        if len(begun) == 5:
            released.set()
        await released.wait()
        return {"modint": {"probes": PROBES}}

    found = Arm()
    await open_loop([{"n": n} for n in range(5)], complete, found, rate=200.0, rng=seeded("b"))
    assert begun == [0, 1, 2, 3, 4]
    assert found.probes == [2] * 5 and found.new_tokens == [40] * 5


async def test_a_kind_of_answer_is_measured_below_its_capacity_and_at_it() -> None:
    asked: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        asked.append(body)
        await asyncio.sleep(0.001)
        return {} if body["modint"].get("mode") == "off" else {"modint": {"probes": PROBES}}

    below, full = await measure(LONG, request_pool(0), complete, 0.01, 2, 0)
    assert (below["load"], full["load"], full["rate_per_s"]) == ("open", "full", None)
    assert below["rate_per_s"] == pytest.approx(0.3 * below["capacity_per_s"])
    assert (below["probes"], full["n"]) == (2.0, FULL_REQUESTS[LONG])
    assert all(body["min_tokens"] == 32 for body in asked)
    guarded = [body for body in asked if body["modint"].get("mode") != "off"]
    assert len(guarded) == below["n"] + full["n"]
    assert len({str(body["messages"]) for body in asked}) == len(asked)


def test_the_figures_of_two_arms_by_hand() -> None:
    arms = {"off": arm(10.0, 20.0, 30.0), "on": arm(11.0, 22.0, 44.0, probes=2)}
    row: dict[str, Any] = figures("open", arms, 10.0, 3.0)
    assert (row["unguarded_ms_p50"], row["guarded_ms_p50"], row["ratio"]) == (20.0, 22.0, 1.1)
    assert (row["n"], row["probes"], row["probe_new_tokens"]) == (3, 2.0, 40.0)
    assert row["ratio_low"] <= 1.1 <= row["ratio_high"]
    wanted = {"answers": LONG, "judged_at": "first token", "views": SHIPPED, "prompts": "short"}
    others = [{**row, **wanted, "ratio": 1.16, "views": "one"}, {**row, **wanted, "prompts": "padded"}]
    assert goal([{**row, **wanted}, *others])["met"] == "yes"
    assert goal([{**row, **wanted, "ratio": 1.16}, *others])["met"] == "no"


def test_equal_times_leave_no_doubt_of_the_ratio() -> None:
    assert ratio_interval([10.0] * 5, [12.0] * 5) == (1.2, 1.2)


def test_long_answers_are_of_32_tokens_whatever_the_model_would_say() -> None:
    assert ANSWERS[LONG]["min_tokens"] == ANSWERS[LONG]["max_tokens"] == 32
