"""Two tenants: one attacks, and the other's verdicts and times are compared with those it has alone.

The gateway runs in a process of its own. The scripted engine fails for requests about an "attack" only.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import numpy as np

from tests.server.conftest import chat
from tests.server.fake_upstream import ADAPTER, Answer, FakeUpstream, is_main, misled, running, text_of
from tests.server.soak import CHAT, Gateway, gateway_process
from tests.server.test_stalls import BODIES, large

JSON = dict[str, Any]
Attack = Callable[[Gateway], Awaitable[None]]
ATTACKER, VICTIM = "key-one", "key-two"
ENGINE_S = 0.02  # what the engine takes for each answer
SETTINGS = {"api_keys": f"{ATTACKER},{VICTIM}", "max_in_flight": "64", "image_timeout_s": "60"}
GIVE_UP_S = 30.0


@dataclass(frozen=True)
class Row:
    """What the victim and /livez saw of an attack. ratio: of the victim's p99 to its p99 alone."""

    attack: str
    requests: int
    same_verdicts: bool
    p50_ms: float
    p99_ms: float
    ratio: float
    livez_samples: int
    livez_p999_ms: float


@dataclass(frozen=True)
class Seen:
    """The victim's verdicts and seconds, and the seconds of /livez."""

    verdicts: tuple[str, ...]
    seconds: tuple[float, ...]
    livez: tuple[float, ...]


def _script(body: JSON) -> Answer:
    answer = replace(misled(body), delay_s=ENGINE_S)
    text = text_of(body)
    if "attack on rungs" in text and body["model"] == ADAPTER:
        return replace(answer, fault="hang")
    if "attack on probes" in text and not is_main(body):
        return replace(answer, fault="hang")
    return answer


def _about(attack: str, **modint: Any) -> bytes:
    body = chat(modint={"relevant": "image", **modint})
    body["messages"][0]["content"][2]["text"] = f"What colour is the shape under {attack}?"
    return json.dumps(body).encode()


def _pictures() -> bytes:
    body = chat(modint={"relevant": "image", "probes": ["noise", "benign"]})
    one = {"type": "image_url", "image_url": {"url": large()}}
    body["messages"][0]["content"] = [one] * 3 + body["messages"][0]["content"][1:]
    return json.dumps(body).encode()


def _again_and_again(body: bytes, at_once: int) -> Attack:
    """Sends a body over and over, so many at a time."""

    async def one(gateway: Gateway) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await _post(gateway, body, ATTACKER)
            await asyncio.sleep(0.005)

    async def attack(gateway: Gateway) -> None:
        await asyncio.gather(*(one(gateway) for _ in range(at_once)))

    return attack


async def _slow_bodies(gateway: Gateway) -> None:
    """Sends heads whose bodies never end."""
    host, port = gateway.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ATTACKER}\r\n"
    head += "content-length: 1000\r\n\r\n{"
    writers = []
    try:
        for _ in range(64):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode())
            writers.append(writer)
        await asyncio.Event().wait()
    finally:
        for writer in writers:
            writer.close()


async def _pages(gateway: Gateway) -> None:
    """Asks for the pages of metrics without a key."""

    async def one(path: str) -> None:
        while True:
            async with gateway.http.get(gateway.url + path) as response:
                await response.read()

    await asyncio.gather(*(one(path) for path in ("/metrics", "/engine/metrics") for _ in range(10)))


ATTACKS: dict[str, Attack] = {
    "a flood": _again_and_again(_about("a flood"), 64),
    "long rungs": _again_and_again(_about("attack on rungs", action="escalate"), 70),
    "hanging probes": _again_and_again(_about("attack on probes", deadline_s=60), 64),
    "pictures": _again_and_again(_pictures(), 16),
    "slow bodies": _slow_bodies,
    "pages of metrics": _pages,
    **{name: _again_and_again(body, 2) for name, body in BODIES.items()},
}


async def measured(names: Sequence[str], *, requests: int) -> AsyncIterator[Row]:
    """A row for each attack, through one gateway; the victim sends so many requests, one after the other."""
    async with running(FakeUpstream(_script)) as upstream, gateway_process(upstream, **SETTINGS) as gateway:
        await _seen(gateway, 5)
        alone = await _seen(gateway, requests)
        for name in names:
            attacking = asyncio.ensure_future(ATTACKS[name](gateway))
            try:
                await asyncio.sleep(0.5)
                seen = await _seen(gateway, requests)
            finally:
                attacking.cancel()
                await asyncio.gather(attacking, return_exceptions=True)
            yield _row(name, seen, alone)
            await asyncio.sleep(0.5)


async def _seen(gateway: Gateway, requests: int) -> Seen:
    livez = list[float]()

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            async with gateway.http.get(gateway.url + "/livez") as response:
                await response.read()
            livez.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)

    watching = asyncio.ensure_future(watch())
    try:
        answers = [await _victim(gateway) for _ in range(requests)]
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    verdicts, seconds = zip(*answers, strict=True)
    return Seen(verdicts, seconds, tuple(livez))


async def _victim(gateway: Gateway) -> tuple[str, float]:
    began = time.perf_counter()
    body = json.dumps(chat(modint={"relevant": "image"})).encode()
    try:
        answer = json.loads(await _post(gateway, body, VICTIM))
        verdict = str(answer["modint"]["verdict"]) if "modint" in answer else str(answer["error"]["code"])
    except (aiohttp.ClientError, TimeoutError) as exc:
        verdict = type(exc).__name__
    return verdict, time.perf_counter() - began


async def _post(gateway: Gateway, body: bytes, key: str) -> bytes:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(GIVE_UP_S)
    async with gateway.http.post(gateway.url + CHAT, data=body, headers=headers, timeout=timeout) as response:
        return await response.read()


def _row(name: str, seen: Seen, alone: Seen) -> Row:
    p50, p99 = np.percentile(seen.seconds, [50, 99]) * 1000
    return Row(
        attack=name,
        requests=len(seen.seconds),
        same_verdicts=seen.verdicts == alone.verdicts and set(alone.verdicts) == {"flagged"},
        p50_ms=round(float(p50), 1),
        p99_ms=round(float(p99), 1),
        ratio=round(float(p99) / float(np.percentile(alone.seconds, 99) * 1000), 2),
        livez_samples=len(seen.livez),
        livez_p999_ms=round(float(np.percentile(seen.livez, 99.9)) * 1000, 1),
    )
