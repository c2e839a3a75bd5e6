"""Seeded traffic through gateways that a real Prometheus scrapes, and what every panel and alert says of it.

    gateways on fake engines → Prometheus scrapes zeros → traffic → it scrapes again → every expression is run

`python -m tests.deploy.panels` writes docs/results/panels.json. Expected values come from the answers that
clients got (the `modint` object) and from how many requests were sent. Two things are put in by hand: answers
slower than ten seconds, for which nobody waits in a test, and the doctor's record of an adapter.
"""

import asyncio
import json
import math
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from modint_guard.launch import free_port
from modint_guard.results import write_results
from modint_server.adapters import Adapter, read, record_modules
from modint_server.boards import BOARDS, plain
from tests.server.adapter_folders import LANGUAGE, adapter, pair
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import (
    ADAPTER,
    BASE,
    JSON,
    Answer,
    FakeUpstream,
    is_grey,
    is_main,
    misled,
    running,
    steady,
    text_of,
)

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "rules" / "modint.yml"
RESULTS = ROOT / "docs" / "results" / "panels.json"
NO_EFFECT = "idle-lora"
SPAN = "1h"  # every window: all of the traffic lies in it
SEED = 7  # of nothing random: the traffic is a fixed list
PATIENCE_S = 120.0
VLLM_PAGE = f"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{model_name="{BASE}"}} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{model_name="{BASE}"}} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{model_name="{BASE}"}} 0.25
""".encode()
BASELINE = 0.125
Key = frozenset[tuple[str, str]]
Values = dict[Key, float]


@dataclass
class Row:
    """One expression: what Prometheus said, beside what was sent."""

    board: str
    panel: str
    expr: str
    status: str
    series: int
    expected: str | None
    value: str | None
    equal: bool | None

    def flat(self) -> JSON:
        return vars(self)


class Prometheus:
    """A real one, on a free port, as a child; ask it with `query`."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._log = folder / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, targets: Mapping[str, Iterable[str]]) -> None:
        """`targets`: job -> addresses. Raises RuntimeError with its last words where it is never ready."""
        jobs = [
            {
                "job_name": job,
                "metrics_path": "/engine/metrics" if job == "vllm" else "/metrics",
                "static_configs": [{"targets": list(addresses)}],
            }
            for job, addresses in targets.items()
        ]
        every = {"scrape_interval": "2s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": [str(RULES)], "scrape_configs": jobs}
        (self._folder / "prometheus.yml").write_text(json.dumps(config), "utf-8")
        found = shutil.which("prometheus")
        if found is None:
            raise RuntimeError("there is no prometheus here: apt-get install prometheus")
        command = [
            found,
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def query(self, expr: str, at: float | None = None) -> tuple[str, list[tuple[dict[str, str], float]]]:
        """The status of an instant query, and its samples."""
        asked = {"query": expr, **({"time": f"{at:.3f}"} if at is not None else {})}
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/query?{urllib.parse.urlencode(asked)}") as said:
                answer = json.load(said)
        except urllib.error.HTTPError as error:
            with error:
                return f"error: {json.load(error)['error']}", []
        return answer["status"], [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self._url}/-/ready", timeout=1) as said:
                    if said.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"prometheus did not become ready: {self._log.read_text('utf-8')[-600:]}")


def engine(upstream: FakeUpstream) -> Any:
    """A base misled by captions, an adapter misled now and then, one without effect; faults by word."""

    def script(body: JSON) -> Answer:
        text, base = text_of(body), body["model"] in (BASE, NO_EFFECT)
        if "shape" not in text:  # the gateway's own: capabilities and the self-test
            mixed_up = upstream.open > 1 and body["model"] == BASE  # vLLM's fault on the CPU
            sure = {"red": 0.9, "blue": 0.05} if base and not mixed_up else {"red": 0.05, "blue": 0.9}
            return Answer(max(sure, key=sure.__getitem__), sure, delay_s=0.05)
        if "fails" in text or ("late" in text and "caption" not in text and is_grey(body)):
            return Answer("", fault="500")
        answer = misled(body) if base or "fourth" in text else steady(body)
        slow = 1.2 if "slowly" in text and not is_main(body) else 0.0
        return Answer(answer.text, answer.top, delay_s=slow)

    return script


def question(words: str, **fields: Any) -> JSON:
    """A chat about a picture; `words` stand in the question, so that every view has them."""
    body = chat(modint={"relevant": "image"}, **fields)
    body["messages"][0]["content"][2]["text"] = f"What colour is the shape {words}?"
    return body


def traffic() -> list[JSON]:
    """210 requests to the adapter (every fourth misled), 60 to the base (each third with a failing probe)."""
    adapters = [question("fourth" if place % 4 == 0 else "here", model=ADAPTER) for place in range(210)]
    base = [question("late" if place % 3 == 0 else "here") for place in range(60)]
    idle = [question("slowly", model=NO_EFFECT) for _ in range(30)]
    streams = [question("here", model=ADAPTER, stream=True, stream_options={"include_usage": True})] * 5
    failing = [question("that fails")] * 6
    return [*adapters, *base, *idle, *streams, *failing]


@dataclass
class Sent:
    """What the clients saw."""

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (adapter, verdict)
    probes: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (adapter, probe, outcome)
    risks: dict[str, list[float]] = field(default_factory=dict)
    probe_tokens: Counter[str] = field(default_factory=Counter)
    ok: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, body: JSON, status: int, raw: bytes) -> None:
        name = "none" if body["model"] == BASE else str(body["model"])
        if status != 200:
            self.failed[name] += 1
            return
        self.ok[name] += 1
        found = _modint(raw)
        self.verdicts[name, found["verdict"]] += 1
        if found["risk"] is not None:
            self.risks.setdefault(name, []).append(found["risk"])
        for probe in found["probes"]:
            self.probes[name, probe["name"], probe["outcome"]] += 1
            self.probe_tokens[name] += probe["tokens"]

    def judged(self, name: str) -> int:
        return self.verdicts[name, "pass"] + self.verdicts[name, "flagged"]

    def flagged_share(self, name: str) -> float:
        return self.verdicts[name, "flagged"] / self.judged(name)

    def failed_share(self, name: str) -> float:
        return self.failed[name] / (self.failed[name] + self.ok[name])

    def flips(self, probe: str, names: Iterable[str]) -> float:
        decided = ("flipped", "consistent", "undecided")
        counts = {one: sum(self.probes[name, probe, one] for name in names) for one in decided}
        return counts["flipped"] / sum(counts.values())

    def probe_failures(self, name: str) -> float:
        found = {key: count for key, count in self.probes.items() if key[0] == name}
        bad = sum(count for key, count in found.items() if key[2] in ("error", "timeout"))
        return bad / sum(found.values())


def _modint(raw: bytes) -> JSON:
    """The object of a whole answer, or of the chunk that holds it."""
    if not raw.startswith(b"data:"):
        found: JSON = json.loads(raw)["modint"]
        return found
    frames = [
        frame.removeprefix("data: ") for frame in raw.decode().split("\n\n") if frame.startswith("data: {")
    ]
    chunks = [json.loads(frame) for frame in frames]
    return next(dict(chunk["modint"]) for chunk in chunks if chunk.get("modint"))


@dataclass
class Seen:
    """Prometheus after the traffic, the moment to ask it about, and what was sent."""

    prometheus: Prometheus
    at: float
    sent: Sent
    overhead: float  # the 95th percentile, computed from the gateway's own buckets

    def value(self, expr: str) -> Values:
        _, samples = self.prometheus.query(expr, self.at)
        return {frozenset(labels.items()): value for labels, value in samples}

    def grown(self, expr: str) -> float:
        """The one value of an expression."""
        (value,) = self.value(expr).values()
        return value


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Seen]:
    """Everything started, the traffic sent and scraped; everything stopped afterwards."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(running(FakeUpstream(page=VLLM_PAGE)))
        upstream.script = engine(upstream)
        upstream.model_list.append({"id": NO_EFFECT, "parent": BASE})
        extra = [{"id": f"lora-{place}", "parent": BASE} for place in range(2)]
        upstream.model_list += extra[:1]
        calm: dict[str, Any] = {"upstream_poll_s": 0.5, "connect_timeout_s": PATIENCE_S}
        test = {**calm, "adapter_selftest": "report", "probe_deadline_s": 30.0, "max_adapter_labels": 3}
        known = [_adapter(folder)]
        main = await stack.enter_async_context(serving(upstream.url, adapters=known, **test))
        await _tested(main)  # before anyone else asks: base answers are the base's only while it is alone
        stalled = await stack.enter_async_context(serving(upstream.url, **calm))
        lost = await stack.enter_async_context(serving("http://127.0.0.1:9", ready=False, **calm))
        gone = f"127.0.0.1:{free_port()}"
        prometheus = Prometheus(folder)
        stack.callback(prometheus.stop)
        addresses = {
            "modint-guard": [_address(main), gone],
            "stalled": [_address(stalled)],
            "lost": [_address(lost)],
            "vllm": [_address(main)],
        }
        await asyncio.to_thread(prometheus.start, addresses)
        await _scraped(prometheus, "modint_requests_total", 2)
        before = _buckets(main)
        upstream.model_list += extra[1:]  # one adapter more than there are labels
        sent = await _send(main, traffic())
        await _send(main, [question("here", model="nobody")] * 110)
        for _ in range(25):
            await stalled.post(question("here"), x_modint_mode="off", connection="close")
        for seconds in (0.2, 0.2, 0.2, 12.0):
            lost.gateway.metrics.duration.labels("unknown", "none").observe(seconds)
        yield Seen(prometheus, await _settled(prometheus), sent, _p95(before, _buckets(main)))


def _adapter(folder: Path) -> Adapter:
    """The served adapter's folder, with a baseline and a doctor's record."""
    made = adapter(folder / ADAPTER, pair(LANGUAGE))
    (made / "run.json").write_text(json.dumps({"baseline": {"flip_ratio": BASELINE}}), "utf-8")
    record_modules(made, {"renamed": 35})
    return read(ADAPTER, made)


def _address(gateway: Running) -> str:
    return gateway.url.removeprefix("http://")


async def _tested(gateway: Running) -> None:
    until = time.monotonic() + PATIENCE_S
    while gateway.gateway.attachment.selftest.mixed is None:
        assert time.monotonic() < until, "the self-test never ended"
        await asyncio.sleep(0.05)


async def _send(gateway: Running, bodies: list[JSON]) -> Sent:
    sent, slots = Sent(), asyncio.Semaphore(8)

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


async def _scraped(prometheus: Prometheus, metric: str, times: int) -> None:
    """Until the metric has been scraped so many times."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        _, found = await asyncio.to_thread(prometheus.query, f"min(count_over_time({metric}[{SPAN}]))")
        if found and found[0][1] >= times:
            return
        await asyncio.sleep(0.2)
    raise RuntimeError(f"{metric} was not scraped {times} times")


async def _settled(prometheus: Prometheus) -> float:
    """A moment after which two more scrapes and the rules made of them have been stored."""
    wait = f"min(timestamp(modint:flip:ratio30m)) > {time.time() + 5.0}"
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        _, found = await asyncio.to_thread(prometheus.query, wait)
        if found:
            return time.time()
        await asyncio.sleep(0.2)
    raise RuntimeError("the rules were never evaluated after the traffic")


def _buckets(gateway: Running) -> dict[float, float]:
    """How many chat requests had at most this overhead."""
    found = {}
    for family in gateway.registry.collect():
        for sample in family.samples:
            if sample.name == "modint_gateway_overhead_seconds_bucket" and sample.labels["route"] == "chat":
                found[float(sample.labels["le"])] = sample.value
    return found


def _p95(before: Mapping[float, float], after: Mapping[float, float]) -> float:
    """Prometheus' histogram_quantile by hand: linear within the bucket that holds the rank."""
    grown = {bound: after[bound] - before[bound] for bound in sorted(after)}
    rank = 0.95 * grown[math.inf]
    lower, below = 0.0, 0.0
    for bound, count in grown.items():
        if count >= rank:
            return lower if bound == math.inf else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    raise AssertionError("unreachable")


# What is asked, and what is expected of it


def expressions() -> list[tuple[str, str, str]]:
    """(board, panel, expression) of every panel, recording rule and alert."""
    panels = [
        (board.title, panel.title, plain(panel.expr, SPAN)) for board in BOARDS for panel in board.panels
    ]
    rules = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    recorded = [("rules", rule["record"], rule["expr"]) for rule in rules if "record" in rule]
    alerts = [("alerts", rule["alert"], rule["expr"]) for rule in rules if "alert" in rule]
    return [*panels, *recorded, *alerts]


def expected(seen: Seen) -> dict[tuple[str, str], Values]:
    """(board, panel) -> the values that the traffic must have left, by labels."""
    sent, model = seen.sent, {"job": "modint-guard", "model": BASE}
    base, ours, idle = ({**model, "adapter": name} for name in ("none", ADAPTER, NO_EFFECT))
    requests = 'modint_requests_total{job="modint-guard", route="chat"}'
    # `increase` reaches a little beyond the first and last scrape: the same factor for all that grew from 0.
    factor = seen.grown(f"sum(increase({requests}[{SPAN}]))") / (
        sum(sent.ok.values()) + sum(sent.failed.values()) + 110
    )
    asked = 'increase(modint_requests_total{job="stalled", outcome="ok"}[15m])'
    stalled = seen.grown(f"sum({asked})") / 25  # scraped at other moments: a factor of its own
    flagged = {_key(base): sent.flagged_share("none"), _key(ours): sent.flagged_share(ADAPTER)}
    flagged[_key(idle)] = sent.flagged_share(NO_EFFECT)
    flips = {_key(ours): sent.flips("no_context", [ADAPTER])}
    everyone = ("none", ADAPTER, NO_EFFECT)
    tokens = {name: sent.probe_tokens[name] / (42 * sent.ok[name]) for name in everyone}
    return {
        ("Modality interference", "Flagged, of those judged"): flagged,
        ("Modality interference", "Flips now (30 m)"): flips,
        ("Modality interference", "Baseline of the adapter"): {_key(ours): BASELINE},
        ("Modality interference", "Flagged: the base"): {_key(base): sent.flagged_share("none")},
        ("Modality interference", "Flips, by probe"): {
            _key({"probe": probe}): sent.flips(probe, everyone)
            for probe in ("no_context", "neutral_image", "prior")
        },
        ("Modality interference", "Mean risk"): {
            _key({**model, "adapter": name}): sum(risks) / len(risks) for name, risks in sent.risks.items()
        },
        ("Serving", "Failed, of all"): {
            _key(base): sent.failed_share("none"),
            _key(ours): sent.failed_share(ADAPTER),
        },
        ("Serving", "Requests timed"): {_key(ours): sent.ok[ADAPTER] * factor},
        ("Serving", "Pictures"): {_key(ours): sent.ok[ADAPTER] * factor, _key(base): 66 * factor},
        ("Serving", "Probe tokens for each token of an answer"): {
            _key({**model, "adapter": name}): value for name, value in tokens.items()
        },
        ("Serving", "vLLM: running"): {_key({"model_name": BASE}): 3.0},
        ("Serving", "vLLM: waiting"): {_key({"model_name": BASE}): 2.0},
        ("Serving", "vLLM: cache in use"): {_key({"model_name": BASE}): 0.25},
        ("Adapters", "Passed"): {_key(ours): 1.0, _key(idle): 0.0},
        ("Adapters", "Modules, by what the doctor recorded"): {_key({**ours, "status": "renamed"}): 35.0},
        ("Adapters", "Answers, by adapter"): {_key(ours): sent.ok[ADAPTER] * factor},
        ("rules", "modint:flagged:ratio30m"): {_key(ours): sent.flagged_share(ADAPTER)},
        ("rules", "modint:flip:ratio30m"): flips,
        ("rules", "modint:slow:ratio5m"): {_key({"job": "lost"}): 0.25},
        ("alerts", "InterferenceAboveBaseline"): flips,
        ("alerts", "AdapterNoEffect"): {_key(idle): 0.0},
        ("alerts", "BaseAnswersFromAdapter"): {_key(model): 0.0},
        ("alerts", "ProbesStalled"): {_key({"job": "stalled"}): 25 * stalled},
        ("alerts", "ProbeErrorRatioHigh"): {_key(base): sent.probe_failures("none")},
        ("alerts", "ProbeOverheadHigh"): {_key({"job": "modint-guard", "route": "chat"}): seen.overhead},
        ("alerts", "EngineUnreachable"): {_key({"job": "lost"}): 0.0},
        ("alerts", "LatencyBurn"): {_key({"job": "lost"}): 0.25},
        ("alerts", "LabelOverflow"): {_key({"job": "modint-guard", "label": "model"}): 110 * factor},
        ("alerts", "TargetDown"): {_key({"job": "modint-guard"}): 0.0},
    }


def _key(labels: Mapping[str, str]) -> Key:
    return frozenset(labels.items())


def measured(seen: Seen) -> list[Row]:
    """One row an expression; `equal` is None where nothing particular was expected."""
    wanted = expected(seen)
    rows = []
    for board, panel, expr in expressions():
        status, samples = seen.prometheus.query(expr, seen.at)
        row = Row(board, panel, " ".join(expr.split()), status, len(samples), None, None, None)
        if (values := wanted.get((board, panel))) is not None:
            found = {key: _found(key, samples) for key in values}
            row.expected, row.value = _shown(values), _shown(found)
            row.equal = all(_same(found[key], value) for key, value in values.items())
        rows.append(row)
    return rows


def _found(key: Key, samples: list[tuple[dict[str, str], float]]) -> float | None:
    """The value of the one series that has these labels (and perhaps others: name, instance)."""
    held = [value for labels, value in samples if key <= set(labels.items())]
    return held[0] if len(held) == 1 else None


def _same(found: float | None, value: float) -> bool:
    return found is not None and math.isclose(found, value, rel_tol=1e-6, abs_tol=1e-9)


def _shown(values: Mapping[Key, float | None]) -> str:
    shown = {
        "/".join(value for name, value in sorted(key) if name != "job") or "all": value
        for key, value in values.items()
    }
    return ", ".join(
        f"{name}: {'none' if v is None else format(v, '.6g')}" for name, v in sorted(shown.items())
    )


async def run(folder: Path) -> list[Row]:
    async with watched(folder) as seen:
        return await asyncio.to_thread(measured, seen)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(run(Path(folder)))
    write_results(
        RESULTS,
        command="make panels",
        seeds=[SEED],
        rows=[row.flat() for row in rows],
        title="Every panel and alert, against a real Prometheus",
        notes="Expected values are computed from what clients were answered; no `equal` where none was.",
    )
    wrong = [row for row in rows if row.status != "success" or not row.series or row.equal is False]
    for row in wrong:
        print(f"{row.board} / {row.panel}: {row.status}, {row.series} series, {row.expected} was {row.value}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
