"""Gateways before fake engines, with everything going wrong that an alert is for, under a real Prometheus.

    gateways on fake engines → Prometheus scrapes zeros → traffic → it scrapes again

Three things are put in by hand: answers slower than ten seconds, for which nobody waits in a test, the
doctor's record of an adapter, and how many planted lies are found.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from modint_guard.demo.launch import free_port
from modint_server.adapters.folders import Adapter, read, record_modules
from tests.deploy.expressions import Seen
from tests.deploy.prometheus import PATIENCE_S, Prometheus
from tests.deploy.traffic import send, tested
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
from tests.server.test_calibrated import written

NO_EFFECT = "idle-lora"
STRANGERS = 110  # requests for a model that does not exist
FAILED_STEPS = 20  # log lines that could not be written
STALLED = 25  # requests with pictures that nobody probes
BASELINE = 0.125
POWER = 0.25  # of planted lies
VLLM_PAGE = f"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{model_name="{BASE}"}} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{model_name="{BASE}"}} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{model_name="{BASE}"}} 0.25
"""
PREFIX_PAGE = """# TYPE vllm:prefix_cache_{0} counter
vllm:prefix_cache_{0}_total{{model_name="{1}"}} {2}
"""


def page(queries: float, hits: float) -> bytes:
    """vLLM's own metrics."""
    counters = (PREFIX_PAGE.format(*one) for one in (("queries", BASE, queries), ("hits", BASE, hits)))
    return (VLLM_PAGE + "".join(counters)).encode()


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


def question(words: str, action: str | None = None, **fields: Any) -> JSON:
    """A chat about a picture; `words` stand in the question, so that every view has them."""
    body = chat(modint={"relevant": "image", **({"action": action} if action else {})}, **fields)
    body["messages"][0]["content"][2]["text"] = f"What colour is the shape {words}?"
    return body


def traffic() -> list[JSON]:
    """210 requests to the adapter (every fourth misled), 60 to the base (every other with a failing probe).

    Mended are 6 at no cost; of 12 that the adapter is to mend some find their tokens spent.
    """
    adapters = [question("fourth" if place % 4 == 0 else "here", model=ADAPTER) for place in range(210)]
    base = [question("late" if place % 2 == 0 else "here") for place in range(60)]
    idle = [question("slowly", model=NO_EFFECT) for _ in range(30)]
    streams = [question("here", model=ADAPTER, stream=True, stream_options={"include_usage": True})] * 5
    failing = [question("that fails")] * 6
    mended = [question("here", "neutralise")] * 6 + [question("here", "escalate")] * 12
    return [*adapters, *base, *idle, *streams, *failing, *mended]


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Seen]:
    """Everything started, the traffic sent and scraped; everything stopped afterwards."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(running(FakeUpstream(page=page(0, 0))))
        upstream.script = engine(upstream)
        upstream.model_list.append({"id": NO_EFFECT, "parent": BASE})
        extra = [{"id": f"lora-{place}", "parent": BASE} for place in range(2)]
        upstream.model_list += extra[:1]
        calm: dict[str, Any] = {"upstream_poll_s": 0.5, "connect_timeout_s": PATIENCE_S}
        test = {**calm, "adapter_selftest": "report", "probe_deadline_s": 30.0, "max_adapter_labels": 3}
        test["mitigation_tokens_per_minute"] = 6 * 4 * 42  # six answers of the adapter, each with its probes
        known = [_adapter(folder)]
        test["calibrations"] = (written(folder),)  # so that the base's answers have a risk
        main = await stack.enter_async_context(serving(upstream.url, adapters=known, **test))
        await tested(main)  # before anyone else asks: base answers are the base's only while it is alone
        stalled = await stack.enter_async_context(serving(upstream.url, **calm))
        lost = await stack.enter_async_context(serving("http://127.0.0.1:9", ready=False, **calm))
        gone = f"127.0.0.1:{free_port()}"
        prometheus = Prometheus(folder)
        stack.callback(prometheus.stop)
        addresses = {
            "modint-guard": [address(main), gone],
            "stalled": [address(stalled)],
            "lost": [address(lost)],
            "vllm": [address(main)],
        }
        await asyncio.to_thread(prometheus.start, addresses)
        for job in ("modint-guard", "stalled", "lost"):  # what a target never said is not waited for
            await prometheus.scraped(f'modint_requests_total{{job="{job}"}}', 2)
        await prometheus.scraped("vllm:prefix_cache_queries_total", 2)
        before = _buckets(main)
        upstream.model_list += extra[1:]  # one adapter more than there are labels
        upstream.page = page(400, 100)
        sent = await send(main, traffic())
        await send(main, [question("here", model="nobody")] * STRANGERS)
        for _ in range(STALLED):
            await stalled.post(question("here"), x_modint_mode="off", connection="close")
        for _ in range(FAILED_STEPS):
            main.gateway.metrics.step_failed("logging")
        for seconds in (0.2, 0.2, 0.2, 12.0):
            lost.gateway.metrics.duration.labels("unknown", "none").observe(seconds)
        main.gateway.metrics.null_power.labels(BASE, "none").set(POWER)
        pages = [(await main.get(path)).body.decode() for path in ("/metrics", "/engine/metrics")]
        at = await prometheus.settled()
        overhead = _p95(before, _buckets(main))
        yield Seen(prometheus, at, sent, "".join(pages), strangers=STRANGERS, overhead=overhead)


def _adapter(folder: Path) -> Adapter:
    """The served adapter's folder, with a run record and a doctor's record."""
    made = adapter(folder / ADAPTER, pair(LANGUAGE))
    run = {"recipe": {"name": "my-recipe"}, "baseline": {"flip_ratio": BASELINE}}
    (made / "run.json").write_text(json.dumps(run), "utf-8")
    record_modules(made, {"renamed": 35})
    return read(ADAPTER, made)


def address(gateway: Running) -> str:
    return gateway.url.removeprefix("http://")


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
