"""The counters that Prometheus would scrape, compared with the answers that the demo saw."""

import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

from modint_guard.evaluation.runner import Row

Counts = dict[tuple[str, ...], int]  # ("label=value", ...), sorted by label -> count


def scrape(url: str, *, engine: bool = True) -> dict[str, Counts]:
    """Every counter of the gateway at `url`, and of the engine behind it: metric name -> counts."""
    counters: dict[str, Counts] = {}
    for path in ("/metrics", "/engine/metrics") if engine else ("/metrics",):
        with urllib.request.urlopen(f"{url}{path}", timeout=30) as response:
            for family in text_string_to_metric_families(response.read().decode()):
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        counts = counters.setdefault(sample.name, {})
                        counts[_key(sample.labels)] = int(sample.value)
    return counters


def _key(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in sorted(labels.items()))


def compare(
    rows: Sequence[Row], base: str, before: Mapping[str, Counts], after: Mapping[str, Counts]
) -> Iterator[str]:
    """A sentence for each counter whose rise differs from the answers seen; none if all are equal.

    base: the model whose adapters all others are.
    """
    said = ("relevant", "verdict", "cause")
    verdicts = Counter(
        _key({**_names(row, base), **{name: row.modint[name] or "none" for name in said}})
        for row in rows
        if row.modint
    )
    requests = Counter(_key({**_names(row, base), "route": "chat", "outcome": "ok"}) for row in rows)
    for name, seen in (("modint_verdicts_total", verdicts), ("modint_requests_total", requests)):
        counted = _rise(name, before, after)
        for labels in sorted(set(seen) | set(counted)):
            rise = counted.get(labels, 0)
            if seen[labels] != rise:
                yield f"{name}{{{', '.join(labels)}}} rose by {rise}, the table has {seen[labels]}"
    unanswered = sum(row.modint is None for row in rows)
    if unanswered:
        yield f"{unanswered} answers came without a `modint` object"


def calls_seen(
    rows: Sequence[Row], before: Mapping[str, Counts], after: Mapping[str, Counts]
) -> Iterator[str]:
    """A sentence if vLLM itself counted fewer calls than were sent: one an answer and one a probe."""
    sent = len(rows) + sum(len(row.modint["probes"]) for row in rows if row.modint)
    served = sum(_rise("vllm:request_success_total", before, after).values())
    if served < sent:
        yield f"vllm:request_success_total rose by {served}, but {sent} calls were sent"


def _names(row: Row, base: str) -> dict[str, str]:
    return {"model": base, "adapter": "none" if row.model == base else row.model}


def _rise(name: str, before: Mapping[str, Counts], after: Mapping[str, Counts]) -> Counts:
    old = before.get(name, {})
    risen = {labels: count - old.get(labels, 0) for labels, count in after.get(name, {}).items()}
    return {labels: count for labels, count in risen.items() if count}


def metric_lines(after: Mapping[str, Counts]) -> Iterator[str]:
    """The non-zero request and verdict counters, as Prometheus reads them."""
    for name in ("modint_requests_total", "modint_verdicts_total"):
        for labels, count in sorted(after.get(name, {}).items()):
            if count:
                quoted = ",".join(
                    f'{label}="{value}"' for label, _, value in (pair.partition("=") for pair in labels)
                )
                yield f"{name}{{{quoted}}} {count}"
