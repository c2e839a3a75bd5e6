"""What is asked of Prometheus, and what is expected of it: computed from the answers that clients got."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.dashboards.boards import BOARDS, metrics_of, plain
from tests.deploy.prometheus import RULES, SPAN, Prometheus, Samples
from tests.deploy.traffic import Sent
from tests.server.fake_upstream import BASE, JSON

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
INTERFERENCE, SERVING, ADAPTERS = (board.title for board in BOARDS)
ALPHA = 0.01  # as the gateway has it
ENOUGH = 200  # examined or judged answers, from which on the rules record a share
Key = frozenset[tuple[str, str]]
Values = dict[Key, float]
Expected = dict[tuple[str, str], Values]  # (board, panel) -> values by labels


@dataclass(frozen=True)
class Seen:
    """Prometheus after the traffic, the moment to ask it about, and what was sent."""

    prometheus: Prometheus
    at: float
    sent: Sent
    page: str  # /metrics and /engine/metrics, as they were after the traffic
    strangers: int = 0  # requests for models that do not exist
    overhead: float = math.nan  # the 95th percentile, computed from the gateway's own buckets

    def grown(self, expr: str) -> float:
        """The one value of an expression."""
        _, ((_, value),) = self.prometheus.query(expr, self.at)
        return value


@dataclass
class Row:
    """One expression: what Prometheus said, beside what was sent."""

    engine: str
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


# What is asked


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> list[tuple[str, str, str]]:
    """(board, panel, expression) of every panel, recording rule and alert."""
    panels = [
        (board.title, panel.title, plain(panel.expr, SPAN)) for board in BOARDS for panel in board.panels
    ]
    recorded = [("rules", rule["record"], rule["expr"]) for rule in rules() if "record" in rule]
    alerts = [("alerts", rule["alert"], rule["expr"]) for rule in rules() if "alert" in rule]
    return [*panels, *recorded, *alerts]


def told_queries() -> list[tuple[str, str, str]]:
    """What pages tell an operator to ask: each line of PromQL in runbooks and in the guide to deployment."""
    pages = [("runbooks", page) for page in sorted(RUNBOOKS.glob("*.md"))]
    found = []
    for board, page in [*pages, ("guide", RUNBOOKS.parent / "deploy.md")]:
        for block in re.findall(r"^ *```promql\n(.*?)^ *```$", page.read_text("utf-8"), re.M | re.S):
            found += [(board, page.stem, line.strip()) for line in block.splitlines() if line.strip()]
    return found


def metrics_named() -> set[str]:
    """Every metric that a panel or rule reads, what rules record left out."""
    names = {name for _, _, expr in expressions() for name in metrics_of(expr)}
    return {name for name in names if not name.startswith("modint:")} | {"modint_build_info"}


def missing_from(page: str) -> set[str]:
    """The metrics of panels and rules that a live page does not have: neither a sample nor, where there is
    nothing to show (an adapter without a doctor's record), the line that declares it."""
    shown = set(re.findall(r"^(?:# TYPE )?([a-zA-Z_:][a-zA-Z0-9_:]*)[{ ]", page, re.MULTILINE))
    return metrics_named() - shown


# What is expected


def from_any_traffic(seen: Seen, baselines: Mapping[str, float]) -> Expected:
    """What answers alone tell; `baselines`: of the adapters whose card has one."""
    sent, who = seen.sent, {name: served(name) for name in seen.sent.names}
    adapters = [name for name in sent.names if name != "none"]
    factor = grown_by(seen)

    def counts(of: Mapping[str, float]) -> Values:
        return {who[name]: of[name] * factor for name in sent.names if of[name]}

    def shares(part: Mapping[str, float], whole: Mapping[str, float]) -> Values:
        return {who[name]: part[name] / whole[name] for name in sent.names if whole[name]}

    judged = {name: sent.judged(name) for name in sent.names}
    flagged = {who[name]: sent.flagged_share(name) for name in sent.names if judged[name]}
    examined = {name: sent.came_back("no_context", [name]) for name in adapters}
    enough = [name for name in adapters if examined[name] >= ENOUGH]
    flips = {who[name]: sent.flips("no_context", [name]) for name in enough}
    promised = {who[name]: baseline for name, baseline in baselines.items()}
    probes = sorted({probe for _, probe, _ in sent.probes})
    settled = {name: sent.settled(name) for name in sent.names}
    answered = {who[name]: (sent.ok[name] + sent.failed[name]) * factor for name in sent.names}
    found: Expected = {
        (INTERFERENCE, "Flagged, of those judged"): flagged,
        (INTERFERENCE, "Judged answers"): counts(judged),
        (INTERFERENCE, "Flagged, by cause"): by("cause", sent.causes, factor),
        (INTERFERENCE, "Flips now (30 m)"): flips,
        (INTERFERENCE, "Baseline of the adapter"): promised,
        (INTERFERENCE, "Above the baseline"): {
            key: share - promised[key] for key, share in flips.items() if key in promised
        },
        (INTERFERENCE, "Flagged: the base"): {served("none"): sent.flagged_share("none")},
        (INTERFERENCE, "Flagged: adapters"): {
            key: value for key, value in flagged.items() if key != served("none")
        },
        (INTERFERENCE, "Flips, by probe"): {
            labels(probe=probe): sent.flips(probe, sent.names) for probe in probes
        },
        (INTERFERENCE, "Risk of 1 − α or more"): {
            who[name]: sum(risk >= 1 - ALPHA for risk in risks) / len(risks)
            for name, risks in sent.risks.items()
        },
        (INTERFERENCE, "Answers, by action"): by("action", sent.actions, factor),
        (INTERFERENCE, "Attempts, by rung and outcome"): by_rung(sent, factor),
        (INTERFERENCE, "Settled, of those tried"): shares(settled, sent.tried),
        (INTERFERENCE, "Flagged answers tried"): counts(sent.tried),
        (INTERFERENCE, "Tokens for each answer tried"): shares(sent.rung_tokens, sent.tried),
        (SERVING, "Failed, of all"): {who[name]: sent.failed_share(name) for name in sent.names},
        (SERVING, "Requests"): answered,
        (SERVING, "Requests timed"): answered,
        (SERVING, "In flight"): {labels(job="modint-guard", model=BASE): 0.0},
        (SERVING, "Waiting for a probe's slot"): {labels(job="modint-guard", model=BASE): 0.0},
        (SERVING, "Pictures"): counts(sent.images),
        (SERVING, "Probe tokens for each token of an answer"): shares(sent.probe_tokens, sent.tokens),
        (SERVING, "Tokens of answers"): counts(sent.tokens),
        (SERVING, "Of these, from the prefix cache"): shares(sent.cached_tokens, sent.probe_tokens),
        (SERVING, "Probe tokens"): counts(sent.probe_tokens),
        (ADAPTERS, "Answers, by adapter"): counts(sent.ok),
        (ADAPTERS, "Flips on the card"): promised,
        (ADAPTERS, "Flips since (30 m)"): flips,
        ("rules", "modint:flagged:ratio30m"): {
            who[name]: sent.flagged_share(name) for name in sent.names if judged[name] >= ENOUGH
        },
        ("rules", "modint:flip:ratio30m"): flips,
    }
    # Of what never happened nothing is expected, not even silence: its counters stand at 0.
    return {panel: values for panel, values in found.items() if values}


def grown_by(seen: Seen) -> float:
    """By how much `increase` exceeds what was sent: it reaches a little beyond the first and last scrape, and
    equally for all that grew from 0.
    """
    requests = 'modint_requests_total{job="modint-guard", route="chat"}'
    return seen.grown(f"sum(increase({requests}[{SPAN}]))") / (seen.sent.requests + seen.strangers)


def by(label: str, found: Mapping[str, int], factor: float) -> Values:
    return {labels(**{label: name}): count * factor for name, count in found.items()}


def by_rung(sent: Sent, factor: float) -> Values:
    total: dict[tuple[str, str], int] = {}
    for (_, rung, outcome), count in sent.rungs.items():
        total[rung, outcome] = total.get((rung, outcome), 0) + count
    return {labels(rung=rung, outcome=outcome): n * factor for (rung, outcome), n in total.items()}


def served(adapter: str) -> Key:
    return labels(job="modint-guard", model=BASE, adapter=adapter)


def labels(**named: str) -> Key:
    return frozenset(named.items())


# What is said


def measured(
    seen: Seen, wanted: Expected, asked: list[tuple[str, str, str]], engine: str = "scripted"
) -> list[Row]:
    """One row an expression; `equal` is None where nothing particular was expected."""
    unasked = wanted.keys() - {(board, panel) for board, panel, _ in asked}
    assert not unasked, f"values are expected of {unasked}, and nobody asks for them"
    return [
        _row(seen, wanted.get((board, panel)), engine, board, panel, expr) for board, panel, expr in asked
    ]


def _row(seen: Seen, values: Values | None, engine: str, board: str, panel: str, expr: str) -> Row:
    status, samples = seen.prometheus.query(expr, seen.at)
    row = Row(engine, board, panel, " ".join(expr.split()), status, len(samples), None, None, None)
    if values is not None:
        found = {key: _found(key, samples) for key in values}
        row.expected, row.value = _shown(values), _shown(found)
        row.equal = all(_same(found[key], value) for key, value in values.items())
        if not values:  # silence is what is expected
            row.expected, row.value, row.equal = "no series", f"{len(samples)} series", not samples
    return row


def faulty(rows: list[Row]) -> list[Row]:
    """The rows that show something wrong: no answer, none where one was due, or another than was due."""
    silent = "no series"
    return [
        row
        for row in rows
        if row.status != "success" or row.equal is False or not (row.series or row.expected == silent)
    ]


def _found(key: Key, samples: Samples) -> float | None:
    """The value of the one series that has these labels (and perhaps others: name, instance)."""
    held = [value for named, value in samples if key <= set(named.items())]
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
