"""Requests through a gateway, and what their answers say ought to have been counted."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import aiohttp

from tests.deploy.prometheus import PATIENCE_S
from tests.server.conftest import Running
from tests.server.fake_upstream import BASE, JSON

AT_ONCE = 8
CAME_BACK = ("consistent", "flipped", "undecided")
SETTLED = ("mended", "confirmed", "abstained")


@dataclass
class Sent:
    """What the clients saw; the base is the adapter "none"."""

    ok: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (adapter, verdict)
    causes: Counter[str] = field(default_factory=Counter)
    risks: dict[str, list[float]] = field(default_factory=dict)
    probes: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (adapter, probe, outcome)
    probe_tokens: Counter[str] = field(default_factory=Counter)
    cached_tokens: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    rungs: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (adapter, rung, outcome)
    rung_tokens: Counter[str] = field(default_factory=Counter)

    def add(self, body: JSON, status: int, raw: bytes) -> None:
        name = "none" if body["model"] == BASE else str(body["model"])
        self.images[name] += pictures(body)
        if status != 200:
            self.failed[name] += 1
            return
        self.ok[name] += 1
        report, usage = said_in(raw)
        self.tokens[name] += usage["prompt_tokens"] + usage["completion_tokens"]
        self.actions[report["action"]] += 1
        self._judge(name, report)
        self._mend(name, report["mitigation"])

    @property
    def names(self) -> list[str]:
        return sorted(self.ok)

    @property
    def requests(self) -> int:
        return sum(self.ok.values()) + sum(self.failed.values())

    def judged(self, name: str) -> int:
        return self.verdicts[name, "pass"] + self.verdicts[name, "flagged"]

    def flagged_share(self, name: str) -> float:
        return self.verdicts[name, "flagged"] / self.judged(name)

    def failed_share(self, name: str) -> float:
        return self.failed[name] / (self.failed[name] + self.ok[name])

    def came_back(self, probe: str, names: Iterable[str]) -> int:
        return sum(self.probes[name, probe, outcome] for name in names for outcome in CAME_BACK)

    def flips(self, probe: str, names: Iterable[str]) -> float:
        names = list(names)
        return sum(self.probes[name, probe, "flipped"] for name in names) / self.came_back(probe, names)

    def probe_failures(self, name: str) -> float:
        found = {key: count for key, count in self.probes.items() if key[0] == name}
        bad = sum(count for key, count in found.items() if key[2] in ("error", "timeout"))
        return bad / sum(found.values())

    def settled(self, name: str) -> int:
        return sum(n for (who, _, outcome), n in self.rungs.items() if who == name and outcome in SETTLED)

    def _judge(self, name: str, report: JSON) -> None:
        self.verdicts[name, report["verdict"]] += 1
        if report["verdict"] == "flagged":
            self.causes[report["cause"]] += 1
        if report["risk"] is not None:
            self.risks.setdefault(name, []).append(report["risk"])
        for probe in report["probes"]:
            self.probes[name, probe["name"], probe["outcome"]] += 1
            self.probe_tokens[name] += probe["tokens"]
            self.cached_tokens[name] += probe["cached_tokens"]

    def _mend(self, name: str, mitigation: JSON | None) -> None:
        if mitigation is None:
            return
        self.tried[name] += 1
        self.rung_tokens[name] += mitigation["tokens"]
        for rung in mitigation["rungs"]:
            self.rungs[name, rung["rung"], rung["outcome"]] += 1


def pictures(body: JSON) -> int:
    contents = [m["content"] for m in body["messages"] if isinstance(m["content"], list)]
    return sum(part["type"] == "image_url" for content in contents for part in content)


def said_in(raw: bytes) -> tuple[JSON, JSON]:
    """(modint, usage) of a whole answer, or of the chunks of a stream that hold them."""
    if not raw.startswith(b"data:"):
        whole: JSON = json.loads(raw)
        return whole["modint"], whole["usage"]
    frames = [
        part.removeprefix("data: ") for part in raw.decode().split("\n\n") if part.startswith("data: {")
    ]
    chunks = [json.loads(frame) for frame in frames]
    report: JSON = next(chunk["modint"] for chunk in chunks if chunk.get("modint"))
    usage: JSON = next(chunk["usage"] for chunk in chunks if chunk.get("usage"))
    return report, usage


async def send(gateway: Running, bodies: list[JSON]) -> Sent:
    """Sends them all, some at once, and says what came back."""
    sent, slots = Sent(), asyncio.Semaphore(AT_ONCE)

    async def one(client: Running, body: JSON) -> None:
        async with slots:
            # A connection each: one kept alive may be closed by the server as it is used again.
            said = await client.post(body, connection="close")
        sent.add(body, said.status, said.body)

    patient = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=patient) as http:
        client = replace(gateway, http=http)
        await asyncio.gather(*(one(client, body) for body in bodies))
    return sent


async def tested(gateway: Running) -> None:
    """Until the self-test has asked base and adapters at once."""
    until = time.monotonic() + PATIENCE_S
    while gateway.gateway.attachment.selftest.mixed is None:
        assert time.monotonic() < until, "the self-test never ended"
        await asyncio.sleep(0.05)
