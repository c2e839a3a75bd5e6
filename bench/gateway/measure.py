"""`python -m bench gateway`: the gateway, LiteLLM's proxy and the bare engine under the same requests.

What is measured runs on one core, the engine and the generator of the load on another. The arms take turns; a
figure is the median over the rounds.
"""

import base64
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.gateway.engine import MODEL
from modint_guard.demo.launch import free_port
from modint_guard.errors import ConfigError, EngineError
from modint_guard.evaluation.results import table, write_results

LITELLM = "litellm[proxy]==1.108.0"
ENVIRONMENT = Path(".venv-litellm")
CONNECTIONS = 16
START_S = 120.0
PICTURE_BYTES = 1_200_000
BARE, LITE, OURS, JUDGED = "no gateway", "LiteLLM's proxy", "modint-guard, passed", "modint-guard, judged"
SMALL, PICTURE = "a question", "a picture of 1.2 MB"
MEASURED = (
    *((arm, load) for load in (SMALL, PICTURE) for arm in (BARE, LITE, OURS)),
    (JUDGED, PICTURE),
)
TIMES, PASSED_MS, JUDGED_MS = 10.0, 3.0, 10.0  # the goals
NOTES = f"""\
`requests_per_s` and `cpu_ms`, a request's CPU time in the gateway's processes: {CONNECTIONS} connections that
ask all the time. `ms_p50`: one connection; `added_ms` is what it is above that without a gateway. Medians
over the rounds, in which the arms take turns. What is measured is pinned to one core, engine and generator to
another; the engine answers at once with fixed bytes, one word. Judged: the request and three views, verdict
in the answer. LiteLLM's proxy ({LITELLM}) has one model and one worker, in an environment of its own.
`engine_limit` is true where engine and generator, not the gateway, may have set the rate: without a gateway
it is less than three times as high."""


@dataclass(frozen=True)
class Arm:
    """A server to be asked: its address, and the process that is measured, None for the engine."""

    url: str
    process: int | None


@dataclass(frozen=True)
class Run:
    """What one turn measured."""

    per_s: float
    cpu_ms: float
    ms_p50: float


def measure_gateway(output: Path, *, seconds: float, rounds: int) -> None:
    """Starts all of them, measures, and writes the table. Raises ConfigError on a machine of one core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ConfigError(
            "bench gateway pins two cores, and this process may use one: run it where there are two"
        )
    ours, theirs = cores[0], cores[1]
    others = busy_share((ours, theirs), min(seconds, 2.0))
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        bodies = {name: folder / f"{number}.json" for number, name in enumerate((SMALL, PICTURE))}
        for name, file in bodies.items():
            file.write_bytes(json.dumps(request(name)).encode())
        arms = started(stack, folder, gateway_core=ours, engine_core=theirs)
        runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        for turn in range(rounds + 1):
            for arm, load in MEASURED if turn % 2 else reversed(MEASURED):
                run = one(arms[arm], bodies[load], seconds if turn else 1.0, core=theirs)
                if turn:  # the first is a warm-up
                    runs[arm, load].append(run)
    rows = figures(runs)
    busy = f"Before it began, other programs took {others:.0%} of the two cores."
    write_results(
        output,
        command=f"python -m bench gateway --seconds {seconds:g} --rounds {rounds}",
        seeds=[0],
        rows=rows,
        title="What the gateway costs a request",
        notes=f"{NOTES} {busy}",
        shown=f"{table(goals(rows))}\n{table(rows)}".rstrip(),
    )


# -- what is asked ---------------------------------------------------------------------------------


def request(load: str) -> dict[str, Any]:
    """A chat request: a short question, or one about a picture with a caption."""
    content: Any = "What is two plus three?"
    if load == PICTURE:
        content = [
            {"type": "image_url", "image_url": {"url": picture(PICTURE_BYTES)}},
            {"type": "text", "text": "The caption says that the shape is blue. What colour is the shape?"},
        ]
    return {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": content}]}


def picture(size: int) -> str:
    """A data: URL of a JPEG of 1600 x 1200 pixels and about `size` bytes."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)).resize((1600, 1200))
    data = b""
    for quality in range(40, 100, 2):
        buffer = io.BytesIO()
        noise.save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if len(data) >= size:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


# -- who is asked ----------------------------------------------------------------------------------


def started(
    stack: contextlib.ExitStack, folder: Path, *, gateway_core: int, engine_core: int
) -> dict[str, Arm]:
    """The engine and all gateways, each ready; they end with the stack."""
    engine, lite, off, on = (f"http://127.0.0.1:{free_port()}" for _ in range(4))
    environment = {"MODINT_ADAPTER_SELFTEST": "off", "MODINT_NULL_CHECKUP": "off", "MODINT_NULL_EVERY": "0"}
    environment |= {"MODINT_NOOP_EVERY": "0"}
    config = folder / "litellm.json"  # JSON is YAML
    options = {"model": f"openai/{MODEL}", "api_base": f"{engine}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": options}]}), "utf-8")
    serve = [sys.executable, "-m", "modint_guard.cli", "serve", "--upstream", engine, "--port"]

    def begin(command: Sequence[str], core: int, url: str, ready: str, **more: str) -> Arm:
        process = stack.enter_context(pinned(command, core, folder / f"{port_of(url)}.log", **more))
        wait_for(url + ready, process, folder / f"{port_of(url)}.log")
        return Arm(url, process.pid)

    begin([sys.executable, "-m", "bench.gateway.engine", port_of(engine)], engine_core, engine, "/v1/models")
    proxy = [str(litellm()), "--config", str(config), "--host", "127.0.0.1", "--port", port_of(lite)]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    quiet |= {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # ours asks for no key either
    return {
        BARE: Arm(engine, None),
        LITE: begin(proxy, gateway_core, lite, "/health/liveliness", **quiet),
        OURS: begin([*serve, port_of(off)], gateway_core, off, "/readyz", MODINT_GUARD="off", **environment),
        JUDGED: begin([*serve, port_of(on)], gateway_core, on, "/readyz", **environment),
    }


def litellm() -> Path:
    """The command of LiteLLM's proxy, installed in an environment of its own if it is not there yet."""
    command = ENVIRONMENT / "bin" / "litellm"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        pip = [str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, LITELLM], check=True)
    return command


def port_of(url: str) -> str:
    """The port of an address."""
    return url.rpartition(":")[2]


@contextlib.contextmanager
def pinned(command: Sequence[str], core: int, log: Path, **more: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A process on one core until the block ends; what it prints is in `log`."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            env={**os.environ, **more},
            preexec_fn=partial(os.sched_setaffinity, 0, {core}),
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Returns when the address answers 200. Raises EngineError if the process ends, or takes too long."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            pass  # not yet
        time.sleep(0.2)
    said = log.read_text("utf-8", "replace")[-2000:]
    raise EngineError(f"{process.args!r} was not ready: its last lines say why\n{said}")


# -- figures ---------------------------------------------------------------------------------------


def one(arm: Arm, body: Path, seconds: float, *, core: int) -> Run:
    """One turn of an arm: under full load, then one request after the other."""
    before = cpu_s(arm.process)
    full = load(arm.url, body, seconds, CONNECTIONS, core)
    cpu_ms = 1000 * (cpu_s(arm.process) - before) / full["n"]
    alone = load(arm.url, body, seconds / 2, 1, core)
    return Run(full["n"] / full["seconds"], cpu_ms, statistics.median(alone["ms"]))


def load(url: str, body: Path, seconds: float, connections: int, core: int) -> dict[str, Any]:
    """What the generator of the load, on its core, measures."""
    command = [sys.executable, "-m", "bench.gateway.load", url, str(body), str(seconds), str(connections)]
    pin = partial(os.sched_setaffinity, 0, {core})
    done = subprocess.run(command, check=True, capture_output=True, preexec_fn=pin)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def cpu_s(process: int | None) -> float:
    """Seconds of CPU that a process, its threads and its children have used; 0 without one."""
    if process is None:
        return 0.0
    total, ticks = 0, os.sysconf("SC_CLK_TCK")
    waiting = [process]
    while waiting:
        pid = waiting.pop()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))  # user, system, and of children that ended
        waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return total / ticks


def busy_share(cores: Sequence[int], seconds: float) -> float:
    """The share of these cores that is in use while nothing of this benchmark runs, in [0, 1]."""

    def used() -> tuple[int, int]:
        lines = dict(line.split(" ", 1) for line in Path("/proc/stat").read_text().splitlines())
        times = [[int(field) for field in lines[f"cpu{core}"].split()[:8]] for core in cores]
        return sum(map(sum, times)), sum(row[3] + row[4] for row in times)

    (all_before, idle_before) = used()
    time.sleep(seconds)
    (all_after, idle_after) = used()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def figures(runs: Mapping[tuple[str, str], Sequence[Run]]) -> list[dict[str, Any]]:
    """A row for each arm and load: medians over the rounds."""

    def middle(arm: str, load: str, name: str) -> float:
        return statistics.median(getattr(run, name) for run in runs[arm, load])

    return [
        {
            "asked": load,
            "of": arm,
            "requests_per_s": (rate := middle(arm, load, "per_s")),
            "cpu_ms": None if arm == BARE else middle(arm, load, "cpu_ms"),
            "ms_p50": middle(arm, load, "ms_p50"),
            "added_ms": None if arm == BARE else middle(arm, load, "ms_p50") - middle(BARE, load, "ms_p50"),
            "engine_limit": arm != BARE and middle(BARE, load, "per_s") < 3 * rate,
            "rounds": len(runs[arm, load]),
        }
        for arm, load in MEASURED
    ]


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The goals, their figures and whether they are met."""
    by = {(row["of"], row["asked"]): row for row in rows}

    def ahead(arm: str, load: str, what: str) -> dict[str, str]:
        times = by[arm, load]["requests_per_s"] / by[LITE, load]["requests_per_s"]
        goal = f"{what}: at least {TIMES:g} times as many requests a second as LiteLLM's proxy"
        return {"goal": goal, "figure": f"{times:.1f}", "met": "yes" if times >= TIMES else "no"}

    def within(arm: str, limit: float, what: str) -> dict[str, str]:
        ms = by[arm, PICTURE]["cpu_ms"]
        goal = f"{what}: at most {limit:g} ms of CPU"
        return {"goal": goal, "figure": f"{ms:.1f}", "met": "yes" if ms <= limit else "no"}

    return [
        ahead(OURS, SMALL, "a question, passed"),
        ahead(OURS, PICTURE, "a picture, passed"),
        ahead(JUDGED, PICTURE, "a picture, judged"),
        within(OURS, PASSED_MS, "a picture, passed"),
        within(JUDGED, JUDGED_MS, "a picture, judged"),
    ]
