"""What a perturbation does to a model's answers: accuracy, flips by direction, how far the options move.

The effect is that of arXiv 2505.19616, section 3: the answers to the same items before and after, compared
at the decision (flips) and in distribution (Jensen-Shannon, base 2, over the options).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modint_guard.data.item import Item, answer_key, choice_of, is_right
from modint_guard.evaluation.statistics import (
    Direction,
    cluster_interval,
    flip_direction,
    flip_rates,
    mean,
    paired_interval,
)
from modint_guard.judging.divergence import Distribution, js_divergence, js_lower_bound

_LEAST = 1e-12  # a probability below this counts as this much in a log-probability


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer to an item; `options` are the probabilities of its choices, `top` the log-probabilities of
    its first token's alternatives, each None if unknown."""

    item: Item
    text: str
    options: Distribution | None = None
    top: Mapping[str, float] | None = None

    @property
    def right(self) -> bool:
        """Whether it states the truth; what cannot be read does not."""
        return is_right(self.item, self.text)

    @property
    def unparsable(self) -> bool:
        """Whether it states none of the item's choices; never so for a free answer."""
        return bool(self.item.choices) and choice_of(self.item, self.text) is None


EFFECTS = (
    *("change", "change_low", "change_high"),
    *("harmful_flip", "beneficial_flip", "neutral_flip"),
    *("js", "js_low", "js_high", "js_exact"),
    *("delta_logprob_answer", "delta_logprob_wrong"),
)


def shares(answers: Sequence[Answered]) -> dict[str, float]:
    """`n`, `accuracy` with its 95 % interval clustered by source, and the share that is `unparsable`.

    Every answer counts, read or not. Raises ValueError without answers.
    """
    right = [float(each.right) for each in answers]
    low, high = cluster_interval(right, sources(answers))
    return {
        "n": len(answers),
        "accuracy": sum(right) / len(right),
        "ci_low": low,
        "ci_high": high,
        "unparsable": sum(each.unparsable for each in answers) / len(answers),
    }


def effect(clean: Sequence[Answered], disturbed: Sequence[Answered]) -> dict[str, float | None]:
    """The change from clean answers to those of the same items under a perturbation, by the names in EFFECTS.

    `change` is that of accuracy. `js`, base 2 in [0, 1], is a mean over the items of which both distributions
    are known: over the options, or, if one of them is in no list, the lower bound that top-k lists prove;
    `js_exact` is the share of the former. The changes of the log-probability of the truth and of the planted
    wrong choice (nats, options renormalised) are means over these. None if nothing is known. Intervals:
    95 %, paired, clustered by source. Raises ValueError if the items are not the same.
    """
    if [each.item.id for each in clean] != [each.item.id for each in disturbed]:
        raise ValueError("clean and disturbed answers must be of the same items, in the same order")
    pairs = list(zip(clean, disturbed, strict=True))
    clusters = sources(clean)
    low, high = paired_interval([each.right for each in clean], [each.right for each in disturbed], clusters)
    return {
        "change": sum(after.right - before.right for before, after in pairs) / len(pairs),
        "change_low": low,
        "change_high": high,
        **flip_rates([direction(before, after) for before, after in pairs]),
        **_moved(pairs, clusters),
    }


def direction(before: Answered, after: Answered) -> Direction:
    """The direction of one item's flip: see `statistics.flip_direction`."""
    return flip_direction(
        answer_key(before.item, before.text),
        answer_key(after.item, after.text),
        right_before=before.right,
        right_after=after.right,
    )


def sources(answers: Sequence[Answered]) -> list[str]:
    """What intervals are clustered by: an item's source, or the item itself."""
    return [each.item.source or each.item.id for each in answers]


def _moved(pairs: Sequence[tuple[Answered, Answered]], clusters: Sequence[str]) -> dict[str, float | None]:
    js = [(_js(*pair), cluster) for pair, cluster in zip(pairs, clusters, strict=True)]
    known = [(value, cluster) for value, cluster in js if value is not None]
    values = [value for value, _ in known]
    low, high = cluster_interval(values, [cluster for _, cluster in known]) if known else (None, None)
    exact = [
        (each.item, each.options, after.options) for each, after in pairs if each.options and after.options
    ]
    return {
        "js": mean(values),
        "js_low": low,
        "js_high": high,
        "js_exact": len(exact) / len(known) if known else None,
        "delta_logprob_answer": mean([_delta(p, q, item.answer) for item, p, q in exact if item.answer]),
        "delta_logprob_wrong": mean([_delta(p, q, item.wrong) for item, p, q in exact if item.wrong]),
    }


def _js(before: Answered, after: Answered) -> float | None:
    if before.options and after.options:
        return js_divergence(before.options, after.options)
    return js_lower_bound(before.top, after.top) if before.top and after.top else None


def _delta(before: Distribution, after: Distribution, choice: str) -> float:
    return math.log(max(_LEAST, after[choice])) - math.log(max(_LEAST, before[choice]))
