"""`python -m bench latency`: the time that the guard adds to a request, in open loop and under full load.

One gateway and engine; `modint.mode` switches the guard on or off for each request. First the capacity is
measured: the requests that the engine answers each second without the guard, with a fixed number of them at
the same time. Then requests arrive by themselves (Poisson) at a share of that rate, in short blocks with and
without the guard that take turns (off, on, on, off). Two blocks that belong together have the same arrival
times; no two blocks share an item, so that neither profits from a cache. A request's time counts from the
moment it was due. All of this is repeated with calibrations that stop at other points, and with long prompts.
"""

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.detection.inputs import cases
from bench.mitigation.tokens import PADDING, padding
from modint_guard.data.perturb import seeded
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.evaluation.fit_calibration import write_calibration
from modint_guard.evaluation.results import table, write_results
from modint_guard.evaluation.runner import request_for
from modint_guard.judging.calibration import CALIBRATION, Calibration, read_calibration
from modint_guard.models import ADAPTER, BASE, located
from modint_guard.types import JSON, Complete

LONG, SHORT = "32 tokens", "one word"
ANSWERS: dict[str, JSON] = {LONG: {"min_tokens": 32, "max_tokens": 32}, SHORT: {}}
FIRST_TOKEN, FORCED = "first token", "teacher forcing"
SHIPPED, AT_ONCE, ONE = "early stop", "all at once", "one"
BRIEF, PADDED = "short", "padded"
SEED_GAP = 1000  # between short and padded prompts, so that they share no picture: a cached one costs less


@dataclass(frozen=True)
class Setup:
    """A way to serve, and the kinds of (answers, prompts) that are measured with it."""

    judged_at: str
    views: str
    measured: tuple[tuple[str, str], ...]


SETUPS = (
    Setup(FIRST_TOKEN, SHIPPED, ((LONG, BRIEF), (LONG, PADDED), (SHORT, BRIEF))),
    Setup(FIRST_TOKEN, AT_ONCE, ((LONG, BRIEF), (LONG, PADDED))),
    Setup(FIRST_TOKEN, ONE, ((LONG, BRIEF), (LONG, PADDED))),
    Setup(FORCED, SHIPPED, ((LONG, BRIEF),)),  # teacher forcing is off if adapters are served
)
FULL_LOAD = 16  # requests at the same time under full load
FULL_REQUESTS = {LONG: 96, SHORT: 240}  # in a run under full load
FULL_BLOCKS = 1  # of each arm, under full load
WARM_UP = 24
SHARE = 0.3  # of the capacity, in open loop
BAR = 1.15
ARMS = ("off", "on")
RESAMPLES = 2000
NOTES = f"""\
Whole answers of {BASE} through vLLM and the gateway, not streamed, from the moment a request was due to
the end of its answer, verdict included. `load` full: {FULL_LOAD} requests under way all the time; what the
engine answers so without the guard is `capacity_per_s`. `load` open: Poisson arrivals at {SHARE:.0%} of it.
With and without the guard in blocks that take turns; every request has an item of its own (lying, true,
needed and neutral inputs of both settings, about 50 tokens and a small picture). `ratio` of the medians, with
a 95 % bootstrap interval over requests. Without the guard they pass the same gateway (`modint.mode: off`).
`judged_at` first token: adapters are served beside the base, as `make serve` does it; teacher forcing: the
base alone, longer answers scored whole under every cell once they are complete. `views` early stop: the
bundled calibration, which asks the other views after the answer where the first does not settle it; all at
once: it asks every view with the request; one: none but the first, by whose risk alone an answer is flagged.
`prompts` padded: {PADDING} words of system text stand before, no two requests the same. `probes` and the
tokens they computed are means a guarded request. The generator of the load shares the machine's cores with
the engine."""


@dataclass
class Arm:
    """Times and costs of the requests with or without the guard."""

    ms: list[float] = field(default_factory=list)
    probes: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)

    def add(self, completion: JSON, ms: float) -> None:
        """Add one answer's time and the cost of its probes."""
        probes = (completion.get("modint") or {}).get("probes") or []
        self.ms.append(ms)
        self.probes.append(len(probes))
        self.new_tokens.append(sum(probe["tokens"] - probe["cached_tokens"] for probe in probes))


def measure_latency(output: Path, *, seconds: float, blocks: int, seed: int) -> None:
    """Serve with every setup, measure each kind of answers, prompts and load, and write the table."""
    rows = []
    for setup in SETUPS:
        with tempfile.TemporaryDirectory() as folder, serving(_arguments(setup, Path(folder))) as served:
            rows += asyncio.run(_measure(served.url, setup, seconds, blocks, seed))
    write_results(
        output,
        command=f"python -m bench latency --seconds {seconds:g} --blocks {blocks} --seed {seed}",
        seeds=[seed],
        rows=rows,
        title="What the guard adds to a request's time",
        notes=NOTES,
        shown=f"{table([goal(rows)])}\n{table(rows)}".rstrip(),
    )


def goal(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The goal, its figure and whether it is met: with the shipped calibration, on short prompts."""
    shipped = {"load": "open", "answers": LONG, "judged_at": FIRST_TOKEN, "views": SHIPPED, "prompts": BRIEF}
    (row,) = (row for row in rows if shipped.items() <= row.items())
    return {
        "goal": f"median at most {BAR} times as long, {LONG} in open loop at {SHARE:.0%} of the capacity",
        "figure": f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]",
        "met": "yes" if row["ratio"] <= BAR else "no",
    }


def _arguments(setup: Setup, folder: Path) -> list[str]:
    """The arguments of `serve`; for other views than the shipped ones, with a calibration written to
    `folder`."""
    adapter = ["--adapter", ADAPTER] if setup.judged_at == FIRST_TOKEN else []
    if setup.views == SHIPPED:
        return adapter
    changed = folder / CALIBRATION
    write_calibration(changed, stopping(read_calibration(located(BASE) / CALIBRATION), setup.views))
    return [*adapter, "--calibration", str(changed)]


def stopping(calibration: Calibration, views: str) -> Calibration:
    """The same risk and thresholds, but asking every view at once (AT_ONCE) or only the first one (ONE)."""
    fitted = {
        relevant: each.model_copy(update={"clear_below": 0.0 if views == AT_ONCE else each.flag_at})
        for relevant, each in calibration.fitted.items()
    }
    return calibration.model_copy(update={"fitted": fitted})


async def _measure(url: str, setup: Setup, seconds: float, blocks: int, seed: int) -> list[dict[str, Any]]:
    async with Endpoint(f"{url}/v1", timeout_s=120) as endpoint:
        pools = {BRIEF: request_pool(seed), PADDED: request_pool(seed + SEED_GAP, padded=True)}
        await full_load(_next_bodies(pools[BRIEF], WARM_UP, LONG, "on"), endpoint.complete, Arm())
        return [
            {
                "judged_at": setup.judged_at,
                "views": setup.views,
                "answers": answers,
                "prompts": prompts,
                **row,
            }
            for answers, prompts in setup.measured
            for row in await measure(answers, pools[prompts], endpoint.complete, seconds, blocks, seed)
        ]


async def measure(
    answers: str, pool: Iterator[JSON], complete: Complete, seconds: float, blocks: int, seed: int
) -> list[dict[str, Any]]:
    """The rows of one kind of answers and prompts: in open loop and under full load."""

    async def full(name: str, arm: Arm, _: int) -> float:
        return await full_load(_next_bodies(pool, FULL_REQUESTS[answers], answers, name), complete, arm)

    capacity = await full("off", Arm(), 0)
    rate = SHARE * capacity

    async def open_block(name: str, arm: Arm, number: int) -> None:
        bodies = _next_bodies(pool, max(1, round(rate * seconds)), answers, name)
        rng = seeded("arrivals", seed, answers, number)  # the same in both arms
        await open_loop(bodies, complete, arm, rate=rate, rng=rng)

    return [
        figures("open", await in_turns(open_block, blocks), capacity, rate),
        figures("full", await in_turns(full, FULL_BLOCKS), capacity, None),
    ]


# -- loads -----------------------------------------------------------------------------------------

Block = Callable[[str, Arm, int], Awaitable[object]]


async def in_turns(block: Block, blocks: int) -> dict[str, Arm]:
    """Run `blocks` blocks of each arm: off, on, on, off, ... Two that belong together have the same
    number."""
    arms = {name: Arm() for name in ARMS}
    for number in range(blocks):
        for name in ARMS if number % 2 == 0 else reversed(ARMS):
            await block(name, arms[name], number)
    return arms


async def full_load(bodies: Sequence[JSON], complete: Complete, arm: Arm) -> float:
    """Send all requests, FULL_LOAD at the same time; returns the answers per second."""
    waiting = iter(bodies)

    async def client() -> None:
        for body in waiting:
            began = time.perf_counter()
            arm.add(await complete(body), 1000 * (time.perf_counter() - began))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(FULL_LOAD):
            group.create_task(client())
    return len(bodies) / (time.perf_counter() - began)


async def open_loop(
    bodies: Sequence[JSON], complete: Complete, arm: Arm, *, rate: float, rng: random.Random
) -> None:
    """Send requests as they arrive, `rate` per second on average; returns when all are answered."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(body: JSON, due: float) -> None:
        await asyncio.sleep(began + due - loop.time())
        completion = await complete(body)
        arm.add(completion, 1000 * (loop.time() - began - due))

    async with asyncio.TaskGroup() as group:
        for body, due in zip(bodies, arrivals(rate, rng), strict=False):
            group.create_task(one(body, due))


def arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """The seconds from the start at which requests arrive: the gaps are exponential, 1 / rate on average."""
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


def request_pool(seed: int, *, padded: bool = False) -> Iterator[JSON]:
    """Requests without end, no item twice, with kinds and settings mixed; if `padded`, each with a long
    system text of its own."""
    for pool_seed in itertools.count(seed):
        shuffled = [case for case in cases("test", 24, pool_seed) if case.held_out == "no"]
        seeded("latency", pool_seed).shuffle(shuffled)
        for number, case in enumerate(shuffled):
            text = padding(f"latency {pool_seed} {number}")
            item = case.item.replace(system=text) if padded else case.item
            named = {"context": case.item.context or ""} if padded else {}
            yield request_for(item, BASE, modint={"relevant": case.relevant, **named})


def _next_bodies(pool: Iterator[JSON], count: int, answers: str, arm: str) -> list[JSON]:
    """The next `count` requests for this kind of answers, with or without the guard."""
    guarded: JSON = {} if arm == "on" else {"modint": {"mode": "off"}}
    return [{**body, **ANSWERS[answers], **guarded} for body in itertools.islice(pool, count)]


# -- figures ---------------------------------------------------------------------------------------


def figures(load: str, arms: Mapping[str, Arm], capacity: float, rate: float | None) -> dict[str, Any]:
    """The figures of both arms under one load."""
    off, on = (np.array(arms[name].ms) for name in ARMS)
    low, high = ratio_interval(arms["off"].ms, arms["on"].ms)
    return {
        "load": load,
        "capacity_per_s": capacity,
        "rate_per_s": rate,
        "n": len(on),
        "unguarded_ms_p50": float(np.median(off)),
        "guarded_ms_p50": float(np.median(on)),
        "ratio": float(np.median(on) / np.median(off)),
        "ratio_low": low,
        "ratio_high": high,
        "unguarded_ms_p95": float(np.quantile(off, 0.95)),
        "guarded_ms_p95": float(np.quantile(on, 0.95)),
        "probes": float(np.mean(arms["on"].probes)),
        "probe_new_tokens": float(np.mean(arms["on"].new_tokens)),
    }


def ratio_interval(off: Sequence[float], on: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of median(on) / median(off), resampling the requests of each."""
    rng = np.random.default_rng(seed)
    drawn = [
        np.median(rng.choice(np.array(values), (RESAMPLES, len(values))), axis=1) for values in (on, off)
    ]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return float(low), float(high)
