"""From times to a table: a row for each delivery and share of judged requests, and the goals."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from bench.latency.loads import Timed
from bench.latency.requests import OFF, SHARES
from modint_guard.types import TEACHER_FORCED

WHOLE, STREAMED = "whole", "streamed"
OPEN, FULL = "open", "full"
GOALS = {1.0: 1.15, 0.1: 1.03}  # by the share that is judged, the most that a median may grow
RESAMPLES = 2000
_SCORED = ("pass", "flagged")


def rows_of(arms: Mapping[str, Sequence[Timed]], **named: Any) -> Iterator[dict[str, Any]]:
    """The rows of one load: each guarded arm against the arm without the guard, by delivery. named: columns
    that all rows have. The requests of all arms stand in one order.
    """
    for arm, share in SHARES.items():
        for delivery in (WHOLE, STREAMED) if arm in arms else ():
            off, on = (
                [each for each in arms[name] if each.streamed == (delivery == STREAMED)]
                for name in (OFF, arm)
            )
            yield {**named, "delivery": delivery, "sample": share, **_compared(off, on)}


def _compared(off: Sequence[Timed], on: Sequence[Timed]) -> dict[str, Any]:
    unguarded, guarded = ([each.ms for each in timed] for timed in (off, on))
    low, high = ratio_interval(unguarded, guarded)
    probes = [each.modint.get("probes") or [] for each in on]
    return {
        "n": len(on),
        "unguarded_ms_p50": float(np.median(unguarded)),
        "guarded_ms_p50": float(np.median(guarded)),
        "ratio": float(np.median(guarded) / np.median(unguarded)),
        "ratio_low": low,
        "ratio_high": high,
        "unguarded_ms_p95": float(np.quantile(unguarded, 0.95)),
        "guarded_ms_p95": float(np.quantile(guarded, 0.95)),
        "unguarded_first_ms_p50": _median([each.first_ms for each in off]),
        "guarded_first_ms_p50": _median([each.first_ms for each in on]),
        "judged": fmean(each.modint.get("verdict") in _SCORED for each in on),
        "scored_whole": fmean(each.modint.get("method") == TEACHER_FORCED for each in on),
        "probes": fmean(map(len, probes)),
        "probe_new_tokens": fmean(
            sum(probe["tokens"] - probe["cached_tokens"] for probe in listed) for listed in probes
        ),
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def ratio_interval(off: Sequence[float], on: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of median(on) / median(off). Two requests that were due at the same time of
    their blocks are resampled together: what arrives before them delays both.
    """
    drawn = np.random.default_rng(seed).integers(len(off), size=(RESAMPLES, len(off)))
    without, with_guard = (np.median(np.array(values)[drawn], axis=1) for values in (off, on))
    low, high = np.quantile(with_guard / without, [0.025, 0.975])
    return float(low), float(high)


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each goal, its figure and whether it is met: in open loop, of every world, length and delivery."""
    return [
        {
            "goal": f"{_subject(row)}: at most {GOALS[row['sample']]} times as long",
            "figure": f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]",
            "met": "yes" if row["ratio"] <= GOALS[row["sample"]] else "no",
        }
        for row in rows
        if row["load"] == OPEN
    ]


def _subject(row: Mapping[str, Any]) -> str:
    judged = "every one judged" if row["sample"] == 1.0 else "one in ten judged"
    return f"{row['world']}, {row['tokens']} tokens, {row['delivery']}, {judged}"
