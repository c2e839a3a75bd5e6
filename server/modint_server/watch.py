"""`modint-guard watch`: flagged answers, flips and latency of a running gateway, from its `/metrics`.

A view shows how the counters grew between two pages, by model and adapter.
"""

import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

from modint_guard.errors import ConfigError, EndpointUnreachable

Labels = frozenset[tuple[str, str]]
Page = Mapping[tuple[str, Labels], float]
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Line:
    """One served model between two pages. A share is None if there is nothing to take it of."""

    model: str
    adapter: str
    requests: float
    failed: float
    judged: float
    flagged: float | None  # share of judged answers
    flips: float | None  # share of answers that changed with what ought not to matter
    median_s: float | None


def watch(
    url: Annotated[str, typer.Option(help="The gateway's address.")] = "http://127.0.0.1:8080",
    every_s: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 2.0,
    window_s: Annotated[float, typer.Option("--window", min=1.0, help="Seconds that a view covers.")] = 300.0,
    once: Annotated[bool, typer.Option("--once", help="Print everything since the start, and end.")] = False,
) -> None:
    """Watch a running gateway: flagged answers, flips and latency by model and adapter."""
    address = _address(url)
    page = read(address)
    console = Console()
    if once:
        console.print(view(lines({}, page), page, "since the gateway's start"))
        return
    pages: deque[tuple[float, Page]] = deque([(time.monotonic(), page)])
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_view_of(pages), refresh=True)
            time.sleep(every_s)
            try:
                pages.append((time.monotonic(), read(address)))
            except EndpointUnreachable as exc:
                age_s = time.monotonic() - pages[-1][0]
                live.update(f"{exc}; the last view was {age_s:.0f} s ago", refresh=True)
                continue
            while len(pages) > 2 and pages[-1][0] - pages[1][0] >= window_s:
                pages.popleft()


def read(address: str) -> Page:
    """The metrics at an address; raises EndpointUnreachable, or ConfigError if they are no gateway's."""
    try:
        with urllib.request.urlopen(f"{address}/metrics", timeout=TIMEOUT_S) as answer:
            text = answer.read().decode("utf-8", "replace")
    except (urllib.error.URLError, OSError) as exc:
        raise EndpointUnreachable(
            f"no gateway answers at {address} ({exc}): start one, or name its address"
        ) from exc
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError as exc:
        raise ConfigError(f"{address}/metrics is no page of metrics: name the gateway's address") from exc
    samples = [sample for family in families for sample in family.samples]
    page = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    if not any(name == "modint_build_info" for name, _ in page):
        raise ConfigError(f"what answers at {address} is no modint-guard: name the gateway's address")
    return page


def lines(before: Page, now: Page) -> list[Line]:
    """One line for each model and adapter that answered a request between the two pages."""
    growth = {key: value - before.get(key, 0.0) for key, value in now.items()}
    served = sorted({_served_by(labels) for name, labels in growth if name == "modint_requests_total"})
    return [line for each in served if (line := _line(growth, *each)).requests]


def view(shown: list[Line], page: Page, span: str) -> Table:
    """The lines as a table; its title says whether the engine is up. span: the time that it covers."""
    up = sum(value for (name, _), value in page.items() if name == "modint_upstream_up")
    busy = sum(value for (name, _), value in page.items() if name == "modint_requests_in_flight")
    title = f"engine {'up' if up else 'DOWN'} · {busy:.0f} in flight · {span}"
    table = Table(
        "model", "adapter", "requests", "failed", "judged", "flagged", "flips", "median", title=title
    )
    for line in shown:
        table.add_row(
            line.model,
            line.adapter,
            f"{line.requests:.0f}",
            f"{line.failed:.0f}",
            f"{line.judged:.0f}",
            _percent(line.flagged),
            _percent(line.flips),
            "–" if line.median_s is None else f"{line.median_s:.2g} s",
        )
    return table


def _view_of(pages: deque[tuple[float, Page]]) -> Table:
    (first, before), (last, now) = pages[0], pages[-1]
    return view(lines(before, now), now, f"the last {last - first:.0f} s")


def _line(growth: Page, model: str, adapter: str) -> Line:
    def total(metric: str, **wanted: tuple[str, ...]) -> float:
        return sum(
            value
            for (name, labels), value in growth.items()
            if name == metric
            and _served_by(labels) == (model, adapter)
            and all(dict(labels).get(label) in values for label, values in wanted.items())
        )

    judged = total("modint_verdicts_total", verdict=("pass", "flagged"))
    decided = ("consistent", "flipped", "undecided")
    # Probes without what ought not to matter: the text beside a question about the picture, and the reverse.
    pairs = ((("image",), ("no_context",)), (("text",), ("neutral_image",)))
    results = "modint_probe_results_total"
    examined = sum(
        total(results, relevant=relevant, probe=probe, outcome=decided) for relevant, probe in pairs
    )
    flipped = sum(
        total(results, relevant=relevant, probe=probe, outcome=("flipped",)) for relevant, probe in pairs
    )
    return Line(
        model,
        adapter,
        requests=total("modint_requests_total"),
        failed=total("modint_requests_total", outcome=("upstream_error", "interrupted", "internal_error")),
        judged=judged,
        flagged=total("modint_verdicts_total", verdict=("flagged",)) / judged if judged else None,
        flips=flipped / examined if examined else None,
        median_s=_median(growth, model, adapter),
    )


def _median(growth: Page, model: str, adapter: str) -> float | None:
    """The median duration of requests, s: the upper bound of its bucket; None without requests."""
    buckets = sorted(
        (float(dict(labels)["le"]), value)
        for (name, labels), value in growth.items()
        if name == "modint_request_duration_seconds_bucket" and _served_by(labels) == (model, adapter)
    )
    if not buckets or not buckets[-1][1]:
        return None
    return next(bound for bound, count in buckets if count >= buckets[-1][1] / 2)


def _served_by(labels: Labels) -> tuple[str, str]:
    named = dict(labels)
    return named.get("model", ""), named.get("adapter", "")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _address(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no address: give one such as http://127.0.0.1:8080")
    return url.rstrip("/").removesuffix("/v1").removesuffix("/metrics")
