"""The tables of docs/metrics.md, generated from the metrics and the values of their labels."""

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
    STEPS,
    UNKNOWN,
    UPSTREAM_ERRORS,
    Family,
    Metrics,
)

BEGIN, END = "<!-- made from the code by `make generated` -->", "<!-- end of what is made -->"
# Every label with its values; in words if they are names (model, adapter, version, ...).
LABELS: dict[str, tuple[str, ...] | str] = {
    "model": f"the served base's name; `{UNKNOWN}` if the request named none that is served",
    "adapter": f"`{NONE}` for the base; `{OTHER}` beyond `MODINT_MAX_ADAPTER_LABELS`",
    "route": ROUTES,
    "outcome of a request": OUTCOMES,
    "direction": ("input", "output"),
    "reason of a rejection": REJECTIONS,
    "step": STEPS,
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
    "rank, revision, recipe": f"of the adapter's folder; `{UNKNOWN}` if the gateway does not know it",
    "label": ("model", "adapter"),
    "version": "of modint-guard",
    "guard, adapter_selftest": "the settings of that name",
}


def families() -> list[Family]:
    """Every metric of the gateway, in the order of the page."""
    settings = {"guard": "on", "adapter_selftest": "auto"}
    return Metrics(CollectorRegistry(), settings=settings).catalogue


def tables() -> str:
    """Two Markdown tables: the metrics, and the values of their labels."""
    rows = [
        f"| `{family.name}` | {family.kind} | {', '.join(family.labels) or '–'} | {family.text.rstrip('.')} |"
        for family in families()
    ]
    values = [
        f"| {name} | {label if isinstance(label, str) else ', '.join(f'`{value}`' for value in label)} |"
        for name, label in LABELS.items()
    ]
    head = ["| family | type | labels | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, "", "| label | values |", "|---|---|", *values])


def rewritten(page: str) -> str:
    """The page with new tables between BEGIN and END. Raises ValueError if it does not have these once."""
    new_page, count = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}",
        lambda _: f"{BEGIN}\n\n{tables()}\n\n{END}",
        page,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"the page needs {BEGIN} and {END} once")
    return new_page
