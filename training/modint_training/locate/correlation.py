"""Rank correlation, with an interval that is clustered by source."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import spearmanr

from modint_guard.evaluation.statistics import percentile_interval


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation in [-1, 1]; None if either side is constant or there are fewer than two
    pairs. Raises ValueError for unequal inputs.
    """
    if len(first) != len(second):
        raise ValueError(f"a correlation needs pairs; got {len(first)} and {len(second)} values")
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def spearman_interval(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of `spearman`, resampling whole clusters; None where `spearman` is.

    Resamples in which a side is constant are left out. Raises ValueError for unequal inputs.
    """
    if spearman(first, second) is None:
        return None
    inside: dict[Hashable, list[int]] = {}
    for place, cluster in enumerate(clusters):
        inside.setdefault(cluster, []).append(place)
    sources, generator = list(inside.values()), np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = [p for s in generator.integers(0, len(sources), len(sources)) for p in sources[s]]
        found.append(spearman([first[place] for place in drawn], [second[place] for place in drawn]))
    return percentile_interval(np.array([value for value in found if value is not None]), level=level)
