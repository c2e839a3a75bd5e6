"""The null of a model: how high a flag's statistic gets on inputs that ought to change nothing. Pure.

An answer's p-value is its place among the scores of such inputs (Bates et al. 2023, arXiv 2104.08279):

    p = (1 + #{null scores >= score}) / (n + 1)

If answer and null come from the same source, P(p <= alpha) <= alpha, for any n and any distribution.
Lies among the null's inputs only make it larger (arXiv 2502.04807).

A longer answer has more places to be moved at, so that scores of different lengths cannot be compared as
they are. Each score, the answer's included, is therefore replaced by its rank among the scores of about its
length: the share, weighted by a normal kernel in the logarithm of the length, that is at least as high. These
ranks are compared. All n + 1 scores are treated alike, so they stay exchangeable and the bound above stays
exact; the kernel makes it hold at each length as well, nearly. An answer of a length that the null hardly
knows has a high rank and is never flagged: `near` says how many scores speak for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

CHECKUP = "checkup"  # the origin of packaged items; all other origins are clients
TRAFFIC = "traffic"  # the source of a null that has scores of clients' requests
CAPACITY = 1000  # scores, the oldest go first
CHECKUP_SHARE = 0.25  # of the scores, at least: clients cannot crowd the packaged items out
CLIENT_SHARE = 0.125  # of the scores, one client's at most, if there are several clients
LIES = 200  # the last planted lies that power is measured on
FEWEST_LIES = 20  # below these, power is unknown
FEWEST_ANSWERS = 20  # below these, it is unknown when an answer of one modality alone can be relied on
RELIABLE = 0.95  # the share of such answers that is then right
BANDWIDTH = 0.5  # of the kernel, in the logarithm of the length
_ROUNDING = 1e-12  # ranks that differ by less are equal

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NullScore:
    """The statistic of one input that ought to change nothing; it says nothing of the input's content.

    length: of the answer, in tokens. origin: CHECKUP, or a name for the client that says nothing of its key.
    source: a digest of the request that the input was planted into, None if it is not known any more; each
    has one score. Raises ValueError for a value that is not finite and for an empty answer.
    """

    value: float
    length: int
    origin: str = CHECKUP
    source: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or self.length < 1:
            raise ValueError(f"a score must be finite and of 1 token or more: {self.value}, {self.length}")


@dataclass(frozen=True)
class Null:
    """The scores of one model, oldest first, and whether each of the last planted lies was flagged.

    lies: only of such as changed the answer. sure: the probability of its first token, of the two likeliest,
    at which an answer that one modality alone gives can be relied on, measured on packaged items; None if it
    is not known. client_share: 1 if there is one client only.
    """

    scores: tuple[NullScore, ...] = ()
    lies: tuple[bool, ...] = ()
    sure: float | None = None
    capacity: int = CAPACITY
    client_share: float = CLIENT_SHARE

    @property
    def power(self) -> float | None:
        """The share of planted lies that was flagged; None below FEWEST_LIES."""
        return sum(self.lies) / len(self.lies) if len(self.lies) >= FEWEST_LIES else None

    @property
    def source(self) -> str:
        """Where its scores are from: CHECKUP, or TRAFFIC if clients' requests are among them."""
        return TRAFFIC if set(self.origins) - {CHECKUP} else CHECKUP

    @property
    def origins(self) -> Counter[str]:
        """How many scores each origin has."""
        return Counter(score.origin for score in self.scores)

    def near(self, length: int) -> float:
        """How many scores are of about this length: the sum of their weights, at most their number."""
        return float(self._weights(length).sum())

    def resolves(self, alpha: float, length: int) -> bool:
        """Whether there are enough scores of about this length for a p-value of alpha: 1/alpha - 1."""
        return self.near(length) >= 1 / alpha - 1 - _ROUNDING

    def p_value(self, value: float, length: int) -> float:
        """The p-value of an answer's statistic, in [1/(n + 1), 1]. length: of the answer, in tokens."""
        weights = self._weights(length)
        values, higher, mass = self._known
        rank = (1.0 + float(weights @ (values >= value))) / (1.0 + float(weights.sum()))
        ranks = (higher + weights * (value >= values)) / (mass + weights)
        return (1 + int((ranks <= rank + _ROUNDING).sum())) / (len(self.scores) + 1)

    def _weights(self, length: int) -> Floats:
        """The kernel of each score at a length: (n,), 1 for the same length."""
        return _kernel(self._log_lengths - math.log(length))

    @cached_property
    def _log_lengths(self) -> Floats:
        logs: Floats = np.log(np.array([score.length for score in self.scores], dtype=float))
        return logs

    @cached_property
    def _known(self) -> tuple[Floats, Floats, Floats]:
        """Of each score its value, the weight of scores at least as high, and that of all: (n,) each."""
        values = np.array([score.value for score in self.scores], dtype=float)
        kernel = _kernel(self._log_lengths[:, None] - self._log_lengths[None, :])  # (n, n)
        higher = (kernel * (values[None, :] >= values[:, None])).sum(axis=1)
        return values, higher, kernel.sum(axis=1)


def with_score(null: Null, score: NullScore) -> Null:
    """The null with one more score, within its bounds, in place of the one that its source may have."""
    kept = [each for each in null.scores if score.source is None or each.source != score.source]
    return replace(null, scores=_within_bounds([*kept, score], null))


def with_checkup(null: Null, scores: Iterable[NullScore]) -> Null:
    """The null with these scores of the packaged items in place of all that it had."""
    kept = [each for each in null.scores if each.origin != CHECKUP]
    return replace(null, scores=_within_bounds([*scores, *kept], null))


def with_lie(null: Null, *, flagged: bool) -> Null:
    """The null that knows of one more planted lie that changed the answer."""
    return replace(null, lies=(*null.lies, flagged)[-LIES:])


def sure_at(answers: Sequence[tuple[float, bool]]) -> float | None:
    """The least confidence from which answers of one modality alone are right often enough to be relied on:
    RELIABLE of them, of FEWEST_ANSWERS at least. None if there is none.

    answers: the confidence of each, in [0, 1], and whether it was right.
    """
    for least in sorted({confidence for confidence, _ in answers}):
        right = [is_right for confidence, is_right in answers if confidence >= least]
        if len(right) >= FEWEST_ANSWERS and sum(right) >= RELIABLE * len(right):
            return least
    return None


def to_rows(null: Null) -> list[list[float | int | str]]:
    """Value, length and origin of each score: what is kept of it. Nothing of any request is in them."""
    return [[score.value, score.length, score.origin] for score in null.scores]


def from_rows(rows: Sequence[Sequence[float | int | str]], null: Null) -> Null:
    """`null` with the scores of `to_rows`, within its bounds. Raises ValueError for other rows."""
    scores: list[NullScore] = []
    for row in rows:
        value, length, origin = row
        if not isinstance(length, int) or isinstance(value, str) or not isinstance(origin, str):
            raise ValueError(f"not a score: {row}")
        scores.append(NullScore(float(value), length, origin))
    return replace(null, scores=_within_bounds(scores, null))


def _within_bounds(scores: list[NullScore], null: Null) -> tuple[NullScore, ...]:
    """The scores without the oldest of whoever has too many. One that goes may put others out of bounds."""
    while (origin := _too_many(scores, null)) is not None:
        del scores[next(n for n, score in enumerate(scores) if score.origin == origin)]
    return tuple(scores)


def _too_many(scores: Sequence[NullScore], null: Null) -> str | None:
    """The origin whose oldest score has to go; None if all bounds hold."""
    clients = Counter(score.origin for score in scores)
    checkup, total = clients.pop(CHECKUP, 0), len(scores)
    largest, count = max(clients.items(), key=lambda item: item[1], default=(CHECKUP, 0))
    if count > null.client_share * total or checkup < CHECKUP_SHARE * total:
        return largest
    if total <= null.capacity:
        return None
    return CHECKUP if checkup > CHECKUP_SHARE * null.capacity else largest


def _kernel(log_ratio: Floats) -> Floats:
    """The weight of a score whose length is exp(log_ratio) times another, in (0, 1]."""
    weights: Floats = np.exp(-0.5 * np.square(log_ratio / BANDWIDTH))
    return weights
