"""Two tenants: one attacks, and the other's verdicts and times are compared with those it has alone.

Gateway, engine and attacker are processes of their own; the victim is this one. With and without the attack
take turns, so that what else the machine does meets both. The engine is scripted, and takes a fixed time.

`python -m tests.server.attacks engine SECONDS` and `... attacker URL` are the two processes.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import numpy as np

from tests.server.conftest import chat
from tests.server.fake_upstream import (
    ADAPTER,
    Answer,
    FakeUpstream,
    is_main,
    lengthy,
    misled,
    running,
    text_of,
)
from tests.server.soak import CHAT, Gateway, gateway_process
from tests.server.test_stalls import BODIES, large

JSON = dict[str, Any]
ATTACKER, VICTIM = "key-one", "key-two"
SETTINGS = {"api_keys": f"{ATTACKER},{VICTIM}", "max_in_flight": "64", "image_timeout_s": "60"}
VICTIMS = 4  # requests of the victim at a time
GIVE_UP_S = 30.0
SETTLES_S = 0.5  # after an attack has begun or ended


@dataclass(frozen=True)
class Row:
    """What the victim and /livez saw of an attack. ratio: of the victim's p99 to its p99 alone.

    engine_ms: what the engine takes for each answer. p99_ms, livez_p999_ms: under the attack.
    """

    attack: str
    engine_ms: int
    requests: int
    same_verdicts: bool
    alone_p50_ms: float
    alone_p99_ms: float
    p50_ms: float
    p99_ms: float
    ratio: float
    livez_samples: int
    livez_alone_p999_ms: float
    livez_p999_ms: float


@dataclass
class Seen:
    """The victim's verdicts and seconds, and the seconds of /livez."""

    verdicts: list[str]
    seconds: list[float]
    livez: list[float]


# The attacker.


@dataclass(frozen=True)
class Target:
    """The gateway, as the attacker reaches it."""

    url: str
    http: aiohttp.ClientSession

    async def post(self, body: bytes, key: str) -> tuple[bytes, float]:
        """The answer, and the seconds after which the gateway wants to be asked again."""
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        timeout = aiohttp.ClientTimeout(GIVE_UP_S)
        async with self.http.post(self.url + CHAT, data=body, headers=headers, timeout=timeout) as response:
            return await response.read(), float(response.headers.get("retry-after", 0))


Attack = Callable[[Target], Awaitable[None]]


def _about(attack: str, **modint: Any) -> bytes:
    body = chat(modint={"relevant": "image", **modint})
    body["messages"][0]["content"][2]["text"] = f"What colour is the shape under {attack}?"
    return json.dumps(body).encode()


def _noisy() -> bytes:
    return json.dumps({**json.loads(_about("attack by noise", probes=["noop"])), "temperature": 5}).encode()


def _pictures() -> bytes:
    body = json.loads(_about("pictures", probes=["noise", "benign"]))
    one = {"type": "image_url", "image_url": {"url": large()}}
    body["messages"][0]["content"] = [one] * 3 + body["messages"][0]["content"][1:]
    return json.dumps(body).encode()


def _again_and_again(body: bytes, at_once: int, *, waits: bool = True) -> Attack:
    """Sends a body over and over, so many at a time. waits: as long as the gateway says, if it says so."""

    async def one(target: Target) -> None:
        while True:
            pause = 0.0
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                _, pause = await target.post(body, ATTACKER)
            await asyncio.sleep(pause if waits else 0.0)

    async def attack(target: Target) -> None:
        await asyncio.gather(*(one(target) for _ in range(at_once)))

    return attack


def _held_open(count: int, head: str) -> Attack:
    """Opens connections on which no more than this comes; those that the gateway closes are opened anew."""

    async def one(host: str, port: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(head.encode())
                    await reader.read()
                finally:
                    writer.close()
            await asyncio.sleep(0.1)

    async def attack(target: Target) -> None:
        host, port = target.url.removeprefix("http://").split(":")
        await asyncio.gather(*(one(host, int(port)) for _ in range(count)))

    return attack


async def _pages(target: Target) -> None:
    """Asks for the pages of metrics without a key."""

    async def one(path: str) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with target.http.get(target.url + path) as response:
                    await response.read()

    await asyncio.gather(*(one(path) for path in ("/metrics", "/engine/metrics") for _ in range(10)))


_HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ATTACKER}\r\n"
ATTACKS: dict[str, Attack] = {
    "noise": _again_and_again(_noisy(), 4),
    "long rungs": _again_and_again(_about("attack on rungs", action="escalate"), 70),
    "hanging probes": _again_and_again(_about("attack on probes", deadline_s=60), 64),
    "long answers with alternatives": _again_and_again(_about("attack by length"), 2),
    "pictures": _again_and_again(_pictures(), 16),
    **{name: _again_and_again(body, 2) for name, body in BODIES.items()},
    "bodies that are too large": _again_and_again(b"x" * 34 * 2**20, 2),
    "slow bodies": _held_open(64, _HEAD + "content-length: 1000\r\n\r\n{"),
    "heads without end": _held_open(400, _HEAD),
    "pages of metrics": _pages,
    "a flood": _again_and_again(_about("a flood"), 64),
    "a flood that does not wait": _again_and_again(_about("a flood"), 64, waits=False),
}


async def _attacker(url: str) -> None:
    """Begins the attack that a line of the input names; an empty line ends it. Answers with a line."""
    os.nice(10)  # elsewhere it would have a machine of its own
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    attacking: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        while line := await lines.readline():
            attacking.cancel()
            await asyncio.gather(attacking, return_exceptions=True)
            if name := line.decode().strip():
                attacking = asyncio.ensure_future(ATTACKS[name](Target(url, http)))
            print("done", flush=True)


# The engine.


LONG = lengthy(4000)


def _script(body: JSON, seconds: float) -> Answer:
    """The victim's questions are answered by `misled`; those of the attacker cost the engine nothing."""
    text = text_of(body)
    if "under" not in text and len(text) < 1000:
        return replace(misled(body), delay_s=seconds)
    answer = Answer("blue", {"blue": 0.95, "red": 0.04}, delay_s=seconds)
    if "attack by length" in text and body["max_tokens"] != 2:
        return replace(LONG, delay_s=seconds)
    is_probe = "caption" not in text
    if "attack by noise" in text and body["max_tokens"] == 2 and is_main(body):
        return replace(answer, text="red", top={"red": 0.999, "blue": 0.001})
    hangs = body["model"] == ADAPTER if "attack on rungs" in text else "attack on probes" in text and is_probe
    return replace(answer, fault="hang") if hangs else answer


async def _engine(seconds: float) -> None:
    """Answers until the process is ended; prints its address."""
    async with running(FakeUpstream(lambda body: _script(body, seconds))) as upstream:
        print(upstream.url, flush=True)
        while True:
            await asyncio.sleep(1)
            upstream.forget()


# The victim.


@contextlib.asynccontextmanager
async def _process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "tests.server.attacks", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


async def measured(
    names: Sequence[str], *, requests: int, rounds: int, engine_s: float
) -> AsyncIterator[Row]:
    """A row for each attack, through one gateway. requests: of the victim, with and without each attack, in
    so many rounds.
    """
    async with _process("engine", str(engine_s)) as engine:
        assert engine.stdout
        upstream = (await engine.stdout.readline()).decode().strip()
        async with gateway_process(upstream, **SETTINGS) as gateway, _process("attacker", gateway.url) as one:
            await _seen(gateway, VICTIMS)  # warm
            for name in names:
                alone, under = Seen([], [], []), Seen([], [], [])
                for _ in range(rounds):
                    for seen, attack in ((alone, ""), (under, name)):
                        await _tell(one, attack)
                        await asyncio.sleep(SETTLES_S)
                        await _seen(gateway, requests // rounds, seen)
                await _tell(one, "")
                yield _row(name, engine_s, under, alone)


async def _tell(attacker: asyncio.subprocess.Process, attack: str) -> None:
    assert attacker.stdin and attacker.stdout
    attacker.stdin.write(f"{attack}\n".encode())
    await attacker.stdout.readline()


async def _seen(gateway: Gateway, requests: int, seen: Seen | None = None) -> None:
    """Adds what the victim sees of so many requests, `VICTIMS` at a time."""
    seen = seen or Seen([], [], [])
    target = Target(gateway.url, gateway.http)
    left = iter(range(requests))

    async def victim() -> None:
        for _ in left:
            verdict, seconds = await _victim(target)
            seen.verdicts.append(verdict)
            seen.seconds.append(seconds)

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            async with gateway.http.get(gateway.url + "/livez") as response:
                await response.read()
            seen.livez.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)

    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.gather(*(victim() for _ in range(VICTIMS)))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _victim(target: Target) -> tuple[str, float]:
    began = time.perf_counter()
    body = json.dumps(chat(modint={"relevant": "image"})).encode()
    try:
        answer = json.loads((await target.post(body, VICTIM))[0])
        verdict = str(answer["modint"]["verdict"]) if "modint" in answer else str(answer["error"]["code"])
    except (aiohttp.ClientError, TimeoutError) as exc:
        verdict = type(exc).__name__
    return verdict, time.perf_counter() - began


def _row(name: str, engine_s: float, under: Seen, alone: Seen) -> Row:
    def ms(seconds: Sequence[float], percent: float) -> float:
        return round(float(np.percentile(seconds, percent)) * 1000, 1)

    return Row(
        attack=name,
        engine_ms=round(engine_s * 1000),
        requests=len(under.seconds),
        same_verdicts=set(under.verdicts) == set(alone.verdicts) == {"flagged"},
        alone_p50_ms=ms(alone.seconds, 50),
        alone_p99_ms=ms(alone.seconds, 99),
        p50_ms=ms(under.seconds, 50),
        p99_ms=ms(under.seconds, 99),
        ratio=round(ms(under.seconds, 99) / ms(alone.seconds, 99), 2),
        livez_samples=len(under.livez),
        livez_alone_p999_ms=ms(alone.livez, 99.9),
        livez_p999_ms=ms(under.livez, 99.9),
    )


if __name__ == "__main__":
    asyncio.run(_engine(float(sys.argv[2])) if sys.argv[1] == "engine" else _attacker(sys.argv[2]))
