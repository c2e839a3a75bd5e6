"""The shipped base and adapter on a real vLLM, behind a gateway that a real Prometheus scrapes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from modint_guard.evaluation.runner import request_for
from modint_guard.models import ADAPTER, BASE, bundled
from modint_server.adapters.folders import read
from modint_training.tinyworld import suite
from tests.deploy.expressions import Seen
from tests.deploy.prometheus import Prometheus
from tests.deploy.traffic import send, tested
from tests.server.conftest import serving
from tests.server.fake_upstream import JSON

SEED = 7
SHOWN = ("true_description", "unrelated_facts", "misleading_description")  # in turn: a third lies
TO_ADAPTER, TO_BASE, MENDED = 220, 60, 12  # shares of less than 200 are not recorded


def traffic() -> list[JSON]:
    """Test items about pictures, to the adapter and to the base; some of the base's answers are mended."""
    items = suite.items("image-heavy", "test", TO_ADAPTER, seed=SEED)
    asked = [
        suite.perturbed(item, name)
        for item, name in zip(items, islice(cycle(SHOWN), len(items)), strict=True)
    ]
    lies = [suite.perturbed(item, "misleading_description") for item in items[:MENDED]]
    actions = islice(cycle(("neutralise", "escalate")), len(lies))
    return [
        *(request_for(item, ADAPTER) for item in asked),
        *(request_for(item, BASE) for item in asked[:TO_BASE]),
        *(
            request_for(item, BASE, modint={"relevant": "image", "action": action})
            for item, action in zip(lies, actions, strict=True)
        ),
    ]


@dataclass(frozen=True)
class Engine:
    """Where the vLLM of a `modint-guard serve` listens, and the key that was made for it."""

    uds: Path
    key: str


def engine_of(serve: int) -> Engine:
    """The engine below a process; whoever started it may reach it. LookupError where there is none."""
    words = _words(serve, "cmdline")
    if "--uds" in words:
        environment = dict(word.partition("=")[::2] for word in _words(serve, "environ"))
        return Engine(Path(words[words.index("--uds") + 1]), environment["VLLM_API_KEY"])
    for task in Path(f"/proc/{serve}/task").glob("*/children"):
        for child in map(int, task.read_text("utf-8").split()):
            with suppress(FileNotFoundError, LookupError):
                return engine_of(child)
    raise LookupError(f"no process below {serve} was started with --uds")


def _words(process: int, file: str) -> list[str]:
    return Path(f"/proc/{process}/{file}").read_bytes().decode("utf-8", "replace").split("\0")


@asynccontextmanager
async def watched(folder: Path, serve: int) -> AsyncIterator[Seen]:
    """A second gateway on the engine of `serve`, whose counters begin at 0; the traffic sent and scraped."""
    engine, known = engine_of(serve), [read(ADAPTER, bundled(ADAPTER))]
    settings: dict[str, Any] = {
        "upstream_uds": engine.uds,
        "upstream_api_key": engine.key,
        "adapter_selftest": "report",
        "upstream_poll_s": 1.0,
        "capability_timeout_s": 120.0,
        "probe_deadline_s": 60.0,
    }
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serving("http://engine", adapters=known, **settings))
        await tested(gateway)
        prometheus = Prometheus(folder)
        stack.callback(prometheus.stop)
        address = gateway.url.removeprefix("http://")
        await asyncio.to_thread(prometheus.start, {"modint-guard": [address], "vllm": [address]})
        await prometheus.scraped("modint_requests_total", 2)
        await prometheus.scraped("vllm:num_requests_running", 2)
        sent = await send(gateway, traffic())
        pages = [(await gateway.get(path)).body.decode() for path in ("/metrics", "/engine/metrics")]
        yield Seen(prometheus, await prometheus.settled(), sent, "".join(pages))
