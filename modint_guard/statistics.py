"""Intervals for shares and means, clustered where items share a source."""

from collections.abc import Hashable, Sequence

import numpy as np


def cluster_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, resampling whole clusters.

    Items of one source (a digit's bitmap) are not independent; resampling sources keeps them together
    (Efron and Tibshirani 1993, chapter 8). A mean of only equal values has the exact binomial bound instead,
    since the bootstrap would claim certainty: 1 - (1 - level)^(1/clusters) for all zeros, and its mirror for
    all ones. Raises ValueError for empty or unequal inputs.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(
            f"need as many clusters as values, and at least one; got {len(clusters)} and {len(values)}"
        )
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    member = np.array([names[name] for name in clusters])
    sums = np.bincount(member, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(member).astype(float)
    mean = float(sums.sum() / sizes.sum())
    if set(values) <= {0, 1} and mean in (0.0, 1.0):
        bound = 1 - (1 - level) ** (1 / len(names))
        return (0.0, bound) if mean == 0.0 else (1 - bound, 1.0)
    drawn = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
