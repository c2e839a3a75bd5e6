"""Thresholds with a guarantee, from risks of labelled answers that the fit has not seen.

Two kinds, both free of any assumption on the risk but that later answers are like the labelled ones
(exchangeable): conformal risk control bounds the expected share of missed positives, learn-then-test the
error among unflagged answers with a confidence. An answer is flagged if its risk reaches the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modint_guard.errors import ConfigError

GRID = tuple(step / 20 for step in range(1, 21))  # the thresholds that are tested
_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Tested:
    """A threshold that passed its test: `n` answers lay below it, `errors` of them wrong, and with confidence
    1 - delta at most `bound` of such answers are.
    """

    flag_at: float
    n: int
    errors: int
    bound: float


def needed_positives(alpha: float) -> int:
    """The fewest positives with which a miss rate of alpha can be promised: ceil(1/alpha) - 1."""
    return math.ceil(1.0 / _share("alpha", alpha) - 1e-9) - 1


def miss_threshold(positives: Sequence[float], alpha: float) -> float:
    """The highest threshold with an expected miss rate of at most alpha (Angelopoulos et al. 2024, "Conformal
    risk control", eq. 4: (n R + 1) / (n + 1) <= alpha with the loss 1[risk < threshold]).

    positives: risks of answers that were wrong under interference. Raises ConfigError with fewer of them than
    `needed_positives`.
    """
    needed = needed_positives(alpha)
    if len(positives) < needed:
        raise ConfigError(
            f"{len(positives)} positives are too few for a miss rate of {alpha:g}: at least {needed} are"
            " needed; label more items, or allow more misses"
        )
    missed = math.floor(alpha * (len(positives) + 1) + 1e-9) - 1
    return sorted(positives)[missed]


def error_threshold(
    risks: Sequence[float],
    wrong: Sequence[bool],
    *,
    alpha: float,
    delta: float,
    at_most: float = 1.0,
    grid: Sequence[float] = GRID,
) -> Tested | None:
    """The highest threshold of the grid, none above `at_most`, below which at most alpha of the answers are
    wrong, with confidence 1 - delta; None if none passes.

    Each threshold is tested with the binomial tail (Clopper and Pearson 1934) at delta / len(grid), so that
    all that pass hold together (Angelopoulos et al. 2021, "Learn then test", Bonferroni). The grid must not
    be chosen from these answers.
    """
    _share("alpha", alpha)
    level = _share("delta", delta) / len(grid)
    for flag_at in sorted((each for each in grid if each <= at_most), reverse=True):
        below = [bad for risk, bad in zip(risks, wrong, strict=True) if risk < flag_at]
        errors = sum(below)
        if below and binomial_cdf(errors, len(below), alpha) <= level:
            return Tested(flag_at, len(below), errors, binomial_upper(errors, len(below), level))
    return None


def feasible_flags(error: float, alpha: float) -> float:
    """The least share of answers that must be flagged to bring an error rate down to alpha, were the flags
    perfect: (error - alpha) / (1 - alpha), at least 0. A threshold that promises less flags is luck.
    """
    return max(0.0, (error - _share("alpha", alpha)) / (1.0 - alpha))


def binomial_cdf(successes: int, n: int, p: float) -> float:
    """P(Bin(n, p) <= successes)."""
    if successes >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(successes + 1)
    ]
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def binomial_upper(successes: int, n: int, delta: float) -> float:
    """The Clopper-Pearson upper bound of a share at confidence 1 - delta: the p with P(Bin(n, p) <=
    successes) = delta; 1 if all or none were drawn.
    """
    if successes >= n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(successes, n, middle) > delta else (low, middle)
    return high


def exact_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a share; (0, 1) if none were drawn."""
    if not n:
        return 0.0, 1.0
    tail = (1 - level) / 2
    return 1.0 - binomial_upper(n - successes, n, tail), binomial_upper(successes, n, tail)


def _share(name: str, value: float) -> float:
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} is {value}: it must lie above 0 and below 1.")
    return value
