"""Intervals clustered by source, of means and of ROC areas; flips by direction; paired tests."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Direction = Literal["none", "harmful", "beneficial", "neutral"]  # of a flip


def mean(values: Iterable[float]) -> float | None:
    """The mean, of flags the share that holds; None if there are none."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


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
    member = _members(clusters)
    sums = np.bincount(member, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(member).astype(float)
    middle = float(sums.sum() / sizes.sum())
    if set(values) <= {0, 1} and middle in (0.0, 1.0):
        bound = 1 - (1 - level) ** (1 / len(sizes))
        return (0.0, bound) if middle == 0.0 else (1 - bound, 1.0)
    drawn = np.random.default_rng(seed).integers(0, len(sizes), (resamples, len(sizes)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(
    before: Sequence[float],
    after: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean of after - before, item by item: the paired bootstrap, resampling whole clusters.

    Before and after are the same items without and with a perturbation, or under two models. Where no item
    differs the bound of `cluster_interval` holds on both sides of 0. Raises ValueError for empty or unequal
    inputs.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired interval needs pairs; got {len(before)} and {len(after)} values")
    differences = [float(second) - float(first) for first, second in zip(before, after, strict=True)]
    low, high = cluster_interval(differences, clusters, level=level, resamples=resamples, seed=seed)
    return (low, high) if any(differences) else (-high, high)


def flip_direction(before: object, after: object, *, right_before: bool, right_after: bool) -> Direction:
    """What a perturbation did to one answer: `harmful` (right to wrong), `beneficial` (wrong to right),
    `neutral` (one wrong answer to another), `none` if it stayed. An unparsable answer is wrong and None.
    """
    if right_before != right_after:
        return "harmful" if right_before else "beneficial"
    return "none" if right_before or before == after else "neutral"


def flip_rates(directions: Sequence[Direction]) -> dict[str, float]:
    """Shares of all items, `harmful_flip`, `beneficial_flip` and `neutral_flip`; together they are the
    decision-level effect of arXiv 2505.19616. Raises ValueError without items.
    """
    if not directions:
        raise ValueError("need at least one pair of answers")
    return {
        f"{kind}_flip": directions.count(kind) / len(directions)
        for kind in ("harmful", "beneficial", "neutral")
    }


class McNemar(NamedTuple):
    """How many items only the first or only the second model has right, and the two-sided p-value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test (1947) that two models err equally often on the same items.

    Of the items that only one has right, either has as many: p = min(1, 2 P(X <= min)) with X binomial of a
    half. Raises ValueError for unequal inputs.
    """
    if len(first) != len(second):
        raise ValueError(f"McNemar's test needs the same items; got {len(first)} and {len(second)} answers")
    pairs = list(zip(first, second, strict=True))
    ours, theirs = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n = ours + theirs
    below = sum(math.comb(n, k) for k in range(min(ours, theirs) + 1))
    return McNemar(ours, theirs, min(1.0, 2 * below / 2**n))


def auroc_resamples(
    scores: Sequence[float],
    positive: Sequence[bool],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The area under the ROC curve (`curves.auroc`) in each bootstrap resample of whole clusters.

    Gives (resamples,). With the same clusters and seed two scores are resampled alike, so that their
    differences are paired. NaN if a resample lacks one of the classes. Raises ValueError for unequal
    inputs or a single class.
    """
    if not len(scores) == len(positive) == len(clusters) or len(set(positive)) < 2:
        raise ValueError("need a label and a cluster for each score, and both classes")
    member = _members(clusters)
    count = int(member.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    values, labels = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    order = np.argsort(values, kind="stable")
    weights = drawn[:, member[order]].astype(float)  # (resamples, n)
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    bad = np.add.reduceat(weights * labels[order], starts, axis=1)
    good = np.add.reduceat(weights * ~labels[order], starts, axis=1)
    below = np.cumsum(good, axis=1) - good
    pairs = bad.sum(axis=1) * good.sum(axis=1)
    won = (bad * (below + good / 2)).sum(axis=1)
    areas: NDArray[np.float64] = np.full(resamples, np.nan)
    np.divide(won, pairs, out=areas, where=pairs > 0)
    return areas


def percentile_interval(resampled: NDArray[np.float64], *, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a statistic's resamples; NaN among them are left out."""
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _members(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """The number of each item's cluster, from 0."""
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    return np.array([names[name] for name in clusters], dtype=np.int64)
