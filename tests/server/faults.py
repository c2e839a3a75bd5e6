"""The fault matrix: an engine that fails at one stage of a request, in many ways, whole and streamed.

An answer is intact if the client reads, with status 200, the text that the engine gave or that a policy put
in its place.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import orjson

from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, Answer, FakeUpstream, is_main, misled, running
from tests.server.test_damaged_answers import LOGPROBS, USAGES
from tests.server.test_mitigation import chunks, text_of

JSON = dict[str, Any]
STAGES = ("main", "probe", "rung")
ACTIONS = ("annotate", "neutralise", "escalate")
BESIDE = tuple(f"usage: {name}" for name in USAGES) + tuple(f"logprobs: {name}" for name in LOGPROBS)
TRANSPORT = (
    "500",
    "400",
    "429",
    "html",
    "html 200",
    "close",
    "hang",
)  # of calls that are not the client's own
ANSWERS = ("blue", "red")


@dataclass(frozen=True)
class Case:
    """One fault at one stage of one kind of request."""

    stage: str
    fault: str
    stream: bool
    action: str


@dataclass(frozen=True)
class Row:
    """What became of it. tasks_left, sockets_left: more than before the request, once it had ended."""

    stage: str
    fault: str
    stream: bool
    action: str
    outcome: str
    answer_intact: bool
    seconds: float
    tasks_left: int
    sockets_left: int


def cases() -> Iterator[Case]:
    """Every combination."""
    for stage, stream, action in product(STAGES, (False, True), ACTIONS):
        for fault in BESIDE if stage == "main" else (*BESIDE, *TRANSPORT):
            yield Case(stage, fault, stream, action)


def stage_of(body: JSON) -> str:
    """The stage that a call belongs to."""
    if body["model"] == ADAPTER:
        return "rung"
    return "main" if is_main(body) else "probe"


async def measured(chosen: Sequence[Case]) -> AsyncIterator[Row]:
    """A row for each case, through one gateway."""
    async with (
        running(FakeUpstream()) as upstream,
        # Looks at the engine are tasks, too: none while it is measured.
        serving(upstream.url, probe_deadline_s=2.0, upstream_poll_s=1000.0) as gateway,
    ):
        for case in chosen:
            yield await _measured(case, upstream, gateway)


async def _measured(case: Case, upstream: FakeUpstream, gateway: Running) -> Row:
    kind, _, name = case.fault.partition(": ")

    def script(body: JSON) -> Answer:
        fails = case.fault in TRANSPORT and stage_of(body) == case.stage
        return replace(misled(body), fault=case.fault if fails else None)

    def damage(body: JSON, answer: JSON) -> JSON:
        if stage_of(body) != case.stage or kind not in ("usage", "logprobs"):
            return answer
        if kind == "usage":
            return {**answer, "usage": USAGES[name]}
        damaged = [{**choice, "logprobs": LOGPROBS[name]} for choice in answer["choices"]]
        return {**answer, "choices": damaged}

    before = len(asyncio.all_tasks())
    upstream.script, upstream.damage = script, damage
    began = time.perf_counter()
    modint = {"relevant": "image", "action": case.action}
    reply = await gateway.post(chat(stream=case.stream, modint=modint))
    seconds = time.perf_counter() - began
    intact = reply.status == 200 and _text(reply.body, case.stream) in ANSWERS
    tasks = await _settled(upstream, before)
    outcome = reply.headers.get("x-modint-verdict", "") if reply.status == 200 else str(reply.status)
    return Row(
        **vars(case),
        outcome=outcome or "streamed",
        answer_intact=intact,
        seconds=round(seconds, 3),
        tasks_left=tasks,
        sockets_left=upstream.open,
    )


def _text(body: bytes, stream: bool) -> str:
    if stream:
        frames = chunks(body)
        return "" if any("error" in frame for frame in frames) else text_of(frames)
    return str(orjson.loads(body)["choices"][0]["message"]["content"])


async def _settled(upstream: FakeUpstream, before: int) -> int:
    """How many tasks are left once the engine's calls have ended; waits for that a second at most."""
    left = 0
    for _ in range(100):
        await asyncio.sleep(0.01)
        left = max(0, len(asyncio.all_tasks()) - before)
        if not upstream.open and not left:
            break
    return left
