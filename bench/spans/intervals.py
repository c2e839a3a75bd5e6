"""Exact binomial intervals (Clopper-Pearson), which hold at the edges too."""

from __future__ import annotations

from scipy.stats import binomtest

LEVEL = 0.95


def interval(hits: int, count: int) -> tuple[float | None, float | None]:
    """The interval of a share; none of nothing."""
    if not count:
        return None, None
    found = binomtest(hits, count).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def at_most(hits: int, count: int) -> float | None:
    """The one-sided upper bound of a share."""
    return (
        float(binomtest(hits, count, alternative="less").proportion_ci(LEVEL, method="exact").high)
        if count
        else None
    )
