"""The soak: many requests of every kind to one gateway in a process of its own, and what they leave there.

The engine is scripted and runs in this process, so that the memory measured is the gateway's alone.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

from modint_guard.types import State
from tests.server.conftest import chat
from tests.server.fake_upstream import ADAPTER, BASE, Answer, FakeUpstream, is_main, misled, running, text_of
from tests.server.test_mitigation import chunks
from tests.server.test_mitigation import text_of as streamed

JSON = dict[str, Any]
CHAT = "/v1/chat/completions"
# Kinds of requests, and how many of a hundred are of each.
KINDS = {"whole": 22, "stream": 22, "neutralise": 8, "escalate": 8, "ladder": 8, "text": 8, "off": 6}
KINDS |= {"unknown": 4, "no JSON": 3, "check": 3, "completion": 3, "left": 5}
BATCHES = 20
JSON_HEADERS = {"content-type": "application/json"}
LOST, NO_VERDICT = "lost", "none"
STATES = tuple(State)


@dataclass(frozen=True)
class Row:
    """What the gateway holds after a batch; by how many requests and verdicts its counters are wrong."""

    requests: int
    rss_kb: int
    sockets: int
    threads: int
    in_flight: int
    lost: int
    miscounted: int


@dataclass
class Gateway:
    """A gateway in another process."""

    url: str
    pid: int
    http: aiohttp.ClientSession

    async def samples(self) -> dict[str, Counter[str]]:
        """The counters that are compared: requests by outcome, verdicts, and the requests in flight."""
        async with self.http.get(self.url + "/metrics") as response:
            page = await response.text()
        counters: dict[str, Counter[str]] = {
            "requests": Counter(),
            "verdicts": Counter(),
            "flight": Counter(),
        }
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == "modint_requests_total":
                    counters["requests"][sample.labels["outcome"]] += int(sample.value)
                elif sample.name == "modint_verdicts_total":
                    counters["verdicts"][sample.labels["verdict"]] += int(sample.value)
                elif sample.name == "modint_requests_in_flight":
                    counters["flight"]["now"] += int(sample.value)
        return counters

    def rss_kb(self) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def sockets(self) -> int:
        links = (each.readlink() for each in Path(f"/proc/{self.pid}/fd").iterdir() if each.is_symlink())
        return sum(str(link).startswith("socket") for link in links)

    def cpu_s(self) -> float:
        """The CPU time of all its threads so far: Linux has a clock of every process."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))


@contextlib.asynccontextmanager
async def gateway_process(upstream: str, **settings: str) -> AsyncIterator[Gateway]:
    """`modint-guard serve --upstream` on a free port, once it is ready.

    upstream: the address of its engine. settings: those of the environment, without their prefix.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from modint_guard.cli import main; main()"
    command = (sys.executable, "-c", code, "serve", "--upstream", upstream, "--port", str(port))
    settings = {"adapter_selftest": "off", "log_level": "error", **settings}
    environment = {**os.environ, **{f"MODINT_{name.upper()}": value for name, value in settings.items()}}
    silent = asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=silent, stderr=silent)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            gateway = Gateway(f"http://127.0.0.1:{port}", child.pid, http)
            await _ready(gateway)
            yield gateway
    finally:
        child.terminate()
        await child.wait()


async def _ready(gateway: Gateway) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with gateway.http.get(gateway.url + "/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


async def soaked(count: int, *, seed: int = 0, concurrency: int = 16) -> AsyncIterator[Row]:
    """A row after each of `BATCHES` batches, of `count` requests in all."""
    random, arrived = Random(seed), Arrived()
    upstream = FakeUpstream(lambda body: _script(body, arrived))
    async with running(upstream), gateway_process(upstream.url) as gateway:
        sent, told, lost = Counter[str](), Counter[str](), 0
        places = asyncio.Semaphore(concurrency)

        async def one(kind: str, pause: float) -> str:
            async with places:
                return await (_left(gateway, arrived, pause) if kind == "left" else _answered(gateway, kind))

        for _ in range(BATCHES):
            kinds = random.choices(list(KINDS), list(KINDS.values()), k=max(1, count // BATCHES))
            sent.update(kinds)
            answered = await asyncio.gather(*(one(kind, random.random() * 0.02) for kind in kinds))
            told.update(answered)
            lost = told[LOST]
            upstream.forget()
            counters = await _settled(gateway, sent.total())
            yield Row(
                requests=sent.total(),
                rss_kb=gateway.rss_kb(),
                sockets=gateway.sockets(),
                threads=gateway.threads(),
                in_flight=counters["flight"]["now"],
                lost=lost,
                miscounted=_miscounted(sent, told, counters),
            )


async def _settled(gateway: Gateway, sent: int) -> dict[str, Counter[str]]:
    """The counters once they hold every request: a client that left is counted a little later."""
    ends = time.monotonic() + 5
    while True:
        counters = await gateway.samples()
        if counters["requests"].total() >= sent or time.monotonic() > ends:
            return counters
        await asyncio.sleep(0.1)


def _miscounted(sent: Counter[str], told: Counter[str], counters: dict[str, Counter[str]]) -> int:
    """By how many requests outcomes and verdicts differ from what was sent, and from what clients were told.

    A client that leaves may have its answer, and its verdict, already: it counts as either.
    """
    requests, verdicts = counters["requests"], counters["verdicts"]
    refused = sent["unknown"] + sent["no JSON"]
    answered = sent.total() - refused - sent["left"]
    differences = [requests.total() - sent.total(), requests["client_error"] - refused]
    differences.append(min(0, requests["ok"] - answered))
    differences.append(requests["ok"] + requests["cancelled"] - answered - sent["left"])
    more = {state: verdicts[state] - told[state] for state in verdicts.keys() | set(STATES)}
    differences += [min(0, number) for number in more.values()]
    differences.append(max(0, sum(more.values()) - sent["left"]))
    return sum(map(abs, differences))


class Arrived:
    """Which requests have arrived at the engine, by the name that they have there."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self._events: dict[str, asyncio.Event] = {}

    def expect(self) -> tuple[str, asyncio.Event]:
        """A new name, and what is set once the request that bears it has arrived."""
        name = f"left-{next(self._count)}"
        self._events[name] = asyncio.Event()
        return name, self._events[name]

    def note(self, name: object) -> None:
        """Notes a request of this name."""
        if (event := self._events.pop(str(name), None)) is not None:
            event.set()


def _script(body: JSON, arrived: Arrived) -> Answer:
    """`misled`, which the adapter is not: escalating corrects it."""
    arrived.note(body.get("user"))
    if body["model"] == ADAPTER and is_main(body):
        return Answer("red", {"red": 0.99, "blue": 0.01})
    if "plain" in text_of(body):
        return Answer("blue", {"blue": 0.9})
    return misled(body)


def _request(kind: str) -> tuple[str, bytes]:
    modint: JSON = {"relevant": "image"}
    bodies: dict[str, JSON] = {
        "whole": chat(modint=modint),
        "stream": chat(stream=True),
        "off": chat(modint={"mode": "off"}),
        "text": {"model": BASE, "messages": [{"role": "user", "content": "plain?"}], "max_tokens": 4},
        "unknown": chat() | {"model": "nobody"},
        "check": chat(answer="blue", modint=modint),
        "completion": {"model": BASE, "prompt": "x"},
    }
    body = bodies.get(kind) or chat(modint={**modint, "action": kind})
    path = {"check": "/v1/guard/check", "completion": "/v1/completions"}.get(kind, CHAT)
    return path, b"{" if kind == "no JSON" else orjson.dumps(body)


async def _left(gateway: Gateway, arrived: Arrived, pause: float) -> str:
    """Leaves so many seconds after the request has arrived at the engine; before, nobody may know of it."""
    name, event = arrived.expect()
    raw = orjson.dumps(chat(stream=True, modint={"relevant": "image"}, user=name))

    async def ask() -> None:
        async with gateway.http.post(gateway.url + CHAT, data=raw, headers=JSON_HEADERS) as response:
            await response.read()

    asking = asyncio.ensure_future(ask())
    await event.wait()
    await asyncio.sleep(pause)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return NO_VERDICT


async def _answered(gateway: Gateway, kind: str) -> str:
    """The verdict that the client was told, NO_VERDICT if there is none to tell, or LOST if it did not get
    what its kind of request should get.
    """
    path, raw = _request(kind)
    async with gateway.http.post(gateway.url + path, data=raw, headers=JSON_HEADERS) as response:
        answer, verdict = await response.read(), response.headers.get("x-modint-verdict", NO_VERDICT)
    if response.status != {"unknown": 404, "no JSON": 400}.get(kind, 200):
        return LOST
    if kind in ("unknown", "no JSON", "check", "completion"):
        return verdict
    if kind == "stream":
        frames = chunks(answer)
        text, verdict = streamed(frames), frames[-1]["modint"]["verdict"]
    else:
        text = orjson.loads(answer)["choices"][0]["message"]["content"]
    return verdict if text in ("blue", "red") else LOST
