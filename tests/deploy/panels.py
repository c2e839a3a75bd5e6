"""`make panels`: every panel, rule, alert and runbook's query against a real Prometheus, twice.

Before scripted engines, where everything goes wrong that an alert is for; and before the real vLLM with the
shipped models, where all is well. Expected values come from the answers that clients got.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from modint_guard.demo.launch import serving
from modint_guard.evaluation.results import write_results
from modint_guard.models import ADAPTER, BASE, bundled
from modint_server.adapters.folders import card, read
from tests.deploy import real_engine, scripted
from tests.deploy.expressions import (
    ADAPTERS,
    INTERFERENCE,
    SERVING,
    Expected,
    Row,
    Seen,
    expressions,
    faulty,
    from_any_traffic,
    grown_by,
    labels,
    measured,
    missing_from,
    served,
    told_queries,
)
from tests.server.fake_upstream import ADAPTER as SCRIPTED

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "panels.json"
# What cannot fire on a healthy engine; of latencies nothing is claimed.
HEALTHY = (
    "InterferenceAboveBaseline",
    "AdapterNoEffect",
    "BaseAnswersFromAdapter",
    "GuardBlind",
    "ProbesStalled",
    "EngineUnreachable",
    "LabelOverflow",
    "StepsFailing",
    "TargetDown",
)


def of_scripted(seen: Seen) -> Expected:
    """What the scripted faults must have left, besides what any traffic leaves."""
    sent, idle = seen.sent, served(scripted.NO_EFFECT)
    found = from_any_traffic(seen, {SCRIPTED: scripted.BASELINE})
    factor = grown_by(seen)
    asked = 'increase(modint_requests_total{job="stalled", outcome="ok"}[15m])'
    stalled = seen.grown(f"sum({asked})") / scripted.STALLED  # scraped at other moments: a factor of its own
    model, actions = labels(model_name=BASE), (INTERFERENCE, "Answers, by action")
    del found[actions][labels(action="annotate")]  # so are those that the stalled gateway never examined
    return {
        **found,
        (SERVING, "vLLM: running"): {model: 3.0},
        (SERVING, "vLLM: waiting"): {model: 2.0},
        (SERVING, "vLLM: cache in use"): {model: 0.25},
        (SERVING, "vLLM: found in the prefix cache"): {model: 0.25},
        (ADAPTERS, "Passed"): {served(SCRIPTED): 1.0, idle: 0.0},
        (ADAPTERS, "Modules, by what the doctor recorded"): {
            served(SCRIPTED) | labels(status="renamed"): 35.0
        },
        (INTERFERENCE, "Planted lies found"): {served("none"): scripted.POWER},
        (INTERFERENCE, "Share that may be flagged"): {
            labels(job=job): 0.01 for job in ("lost", "modint-guard", "stalled")
        },
        ("rules", "modint:slow:ratio5m"): {labels(job="lost"): 0.25},
        ("alerts", "InterferenceAboveBaseline"): found["rules", "modint:flip:ratio30m"],
        ("alerts", "AdapterNoEffect"): {idle: 0.0},
        ("alerts", "BaseAnswersFromAdapter"): {labels(job="modint-guard", model=BASE): 0.0},
        ("alerts", "GuardBlind"): {served("none"): scripted.POWER},
        ("alerts", "ProbesStalled"): {labels(job="stalled"): scripted.STALLED * stalled},
        ("alerts", "ProbeErrorRatioHigh"): {served("none"): sent.probe_failures("none")},
        ("alerts", "ProbeOverheadHigh"): {labels(job="modint-guard", route="chat"): seen.overhead},
        ("alerts", "EngineUnreachable"): {labels(job="lost"): 0.0},
        ("alerts", "LatencyBurn"): {labels(job="lost"): 0.25},
        ("alerts", "LabelOverflow"): {labels(job="modint-guard", label="model"): scripted.STRANGERS * factor},
        ("alerts", "StepsFailing"): {
            labels(job="modint-guard", step="logging"): scripted.FAILED_STEPS * factor
        },
        ("alerts", "TargetDown"): {labels(job="modint-guard"): 0.0},
    }


def of_real(seen: Seen) -> Expected:
    """The shipped adapter's own baseline, an engine at rest, and alerts that are silent."""
    baseline = card(read(ADAPTER, bundled(ADAPTER))).baseline_flip_ratio
    assert baseline is not None
    model = labels(model_name=BASE)
    return {
        **from_any_traffic(seen, {ADAPTER: baseline}),
        (SERVING, "vLLM: running"): {model: 0.0},
        (SERVING, "vLLM: waiting"): {model: 0.0},
        (ADAPTERS, "Passed"): {served(ADAPTER): 1.0},
        (ADAPTERS, "The base beside adapters"): {labels(job="modint-guard", model=BASE): 1.0},
        **{("alerts", name): {} for name in HEALTHY},
    }


async def before_scripted_engines(folder: Path) -> tuple[list[Row], str]:
    """The rows, and the live page that they stand on."""
    async with scripted.watched(folder) as seen:
        asked = [*expressions(), *told_queries()]
        rows = await asyncio.to_thread(measured, seen, of_scripted(seen), asked)
        return rows, seen.page


async def before_vllm(folder: Path, serve: int) -> tuple[list[Row], str]:
    """The same on the engine of a running `modint-guard serve`, but for what a healthy one leaves empty."""
    async with real_engine.watched(folder, serve) as seen:
        wanted = of_real(seen)
        asked = [one for one in expressions() if one[:2] in wanted or not may_be_empty(*one[:2])]
        rows = await asyncio.to_thread(measured, seen, wanted, asked, "vLLM")
        return rows, seen.page


def may_be_empty(board: str, panel: str) -> bool:
    """No streams were sent, the shipped adapter bears no doctor's record, no lies were planted, nothing was
    measured of the models, and alerts wait for trouble."""
    return board == "alerts" or panel in (
        "To the first token, median",
        "Modules, by what the doctor recorded",
        "Planted lies found",
        "Risk of 1 − α or more",
    )


def told(row: Row) -> str:
    """One faulty row as a line."""
    said = f"{row.status}, {row.series} series, {row.expected} was {row.value}"
    return f"{row.engine}: {row.board} / {row.panel}: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make panels")
    parser.add_argument("--output", type=Path, default=RESULTS)
    output: Path = parser.parse_args().output
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        rows, page = asyncio.run(before_scripted_engines(Path(one)))
        with serving(["--adapter", ADAPTER]) as running:
            real, real_page = asyncio.run(before_vllm(Path(other), running.process.pid))
    rows += real
    write_results(
        output,
        command="make panels",
        seeds=[real_engine.SEED],
        rows=[row.flat() for row in rows],
        title="Every panel, rule, alert and runbook's query, against a real Prometheus",
        notes="Expected values are computed from what clients were answered; no `equal` where none was. "
        "`scripted`: engines with every fault that an alert is for; `vLLM`: the shipped models, where alerts "
        "are silent.",
    )
    wrong = [told(row) for row in faulty(rows)]
    wrong += [f"/metrics has no {name}" for name in sorted(missing_from(page) | missing_from(real_page))]
    print("\n".join(wrong) if wrong else f"{len(rows)} rows, none of them wrong: {output}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
