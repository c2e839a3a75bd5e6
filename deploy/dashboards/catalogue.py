"""The metrics' own page: docs/metrics.md's table, made from the families and their labels' values."""

import re

from prometheus_client import CollectorRegistry

from modint_guard.types import RUNGS, SKIPPED_REASONS, Cause, ProbeOutcome, Relevant, RungOutcome, State
from modint_server.metrics import (
    ACTIONS,
    ADAPTER_STATUSES,
    NONE,
    OTHER,
    OUTCOMES,
    PROBES,
    REJECTIONS,
    ROUTES,
    UNKNOWN,
    UPSTREAM_ERRORS,
    Family,
    Metrics,
)

BEGIN, END = "<!-- made from the code by `make generated` -->", "<!-- end of what is made -->"
# Every label with its values; those of names (model, adapter, version, ...) are said in words.
LABELS: dict[str, tuple[str, ...] | str] = {
    "model": f"the served base's name; `{UNKNOWN}` where the request named none that is served",
    "adapter": f"`{NONE}` for the base; `{OTHER}` beyond `MODINT_MAX_ADAPTER_LABELS`",
    "route": ROUTES,
    "outcome of a request": OUTCOMES,
    "direction": ("input", "output"),
    "reason of a rejection": REJECTIONS,
    "upstream": ("engine",),
    "kind": UPSTREAM_ERRORS,
    "relevant": tuple(Relevant),
    "verdict": tuple(State),
    "cause": (NONE, *Cause),
    "probe": PROBES,
    "outcome of a probe": tuple(ProbeOutcome),
    "reason of a skip": SKIPPED_REASONS,
    "rung": RUNGS,
    "outcome of a rung": tuple(RungOutcome),
    "action": ACTIONS,
    "status": ADAPTER_STATUSES,
    "rank, revision, recipe": f"of the adapter's folder; `{UNKNOWN}` where the gateway does not know it",
    "label": ("model", "adapter"),
    "version": "of modint-guard",
    "guard, adapter_selftest": "the settings of that name",
}


def families() -> list[Family]:
    """Every family of the gateway, in the order of the page."""
    settings = {"guard": "on", "adapter_selftest": "auto"}
    return Metrics(CollectorRegistry(), settings=settings).catalogue


def tables() -> str:
    """Two Markdown tables: the families, and the values of their labels."""
    rows = [
        f"| `{one.name}` | {one.kind} | {', '.join(one.labels) or '–'} | {one.text.rstrip('.')} |"
        for one in families()
    ]
    values = [
        f"| {name} | {said if isinstance(said, str) else ', '.join(f'`{value}`' for value in said)} |"
        for name, said in LABELS.items()
    ]
    head = ["| family | type | labels | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, "", "| label | values |", "|---|---|", *values])


def rewritten(page: str) -> str:
    """The page with its tables made anew; ValueError where it has no place for them."""
    made, count = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}",
        lambda _: f"{BEGIN}\n\n{tables()}\n\n{END}",
        page,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"the page needs {BEGIN} and {END} once")
    return made
