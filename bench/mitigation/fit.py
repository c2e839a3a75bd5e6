"""What validation chooses: the order of the rungs, how sure an answer must be, the contrast's weight.

Every rung is tried alone on every flagged answer; an order's answer is then that of its first rung that
settles. Orders are compared for each cause, relevant modality and form of the answer apart.
"""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from bench.mitigation.answers import PATIENT, Asked, over_answers
from modint_guard.data.item import Item
from modint_guard.errors import ConfigError
from modint_guard.evaluation.statistics import mean
from modint_guard.mitigation import fitted as learnt
from modint_guard.mitigation.policy import Policy
from modint_guard.types import ANNOTATE, DEBIAS, ESCALATE, NEUTRALISE, Reply

LAMBDAS = tuple(0.25 * step for step in range(1, 13))
SURENESSES = (0.0, 0.3, 0.5, 0.7, 0.9, 0.99)
TRIED = (NEUTRALISE, ESCALATE, DEBIAS)  # TinyWorld has no longer answers to rerank
ORDERS = tuple(order for size in range(len(TRIED) + 1) for order in permutations(TRIED, size))
ENOUGH = 20  # flagged answers of a kind, below which its order stays the reasoned one
NOTES = f"""\
Chosen on the validation split, on settings that nothing holds out, where the client names what is
relevant; every cell is asked. `order`: of the flagged answers of one cause, relevant modality and form, the
share that is right after these rungs, and the tokens they cost an answer on average; chosen is the best, of
equals the cheapest (then no rung, then most of them), and only where at least {ENOUGH} were flagged.
`accept_at`: the same share over all kinds, each with its best order; of equals the strictest. `lambda`: of
the flagged answers that are an option's label, the share that is right after `debias`; of equals the
smallest. `constant_bias`: minus the label's mean log-probability, over all answers."""

Kind = tuple[str, str, str]  # cause, relevant modality, form
Order = tuple[str, ...]
LEAST = 1e-12  # a listed label's probability may have underflowed to 0


@dataclass(frozen=True)
class Tally:
    """How many of some answers are right in the end, and the tokens it took beyond the verdict."""

    right: int = 0
    tokens: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.right + other.right, self.tokens + other.tokens)

    @property
    def rank(self) -> tuple[int, int]:
        """More is better."""
        return self.right, -self.tokens


def grid() -> dict[str, Policy]:
    """Every rung alone, lambda and sureness along their grids."""
    sure = {_sure(v): Policy(NEUTRALISE, accept_at=v, **PATIENT) for v in SURENESSES}
    contrast = {_weighed(v): Policy(DEBIAS, debias_lambda=v, **PATIENT) for v in LAMBDAS}
    return {**sure, ESCALATE: Policy(ESCALATE, **PATIENT), **contrast}


def _sure(value: float) -> str:
    return f"{NEUTRALISE} accept_at={value:g}"


def _weighed(value: float) -> str:
    return f"{DEBIAS} lambda={value:g}"


def fit_rows(model: str, found: Sequence[Asked]) -> list[dict[str, Any]]:
    """What was compared on the validation answers of one model, and what is chosen."""
    kinds = by_kind(found)
    labels = [one for kind, group in kinds.items() for one in group if kind[2] == "options"]
    weights = {v: mean([one.served[_weighed(v)].right for one in labels]) for v in LAMBDAS}
    weight = max(LAMBDAS, key=lambda value: weights[value] or 0.0) if labels else None
    rows = [
        _row(model, "lambda", DEBIAS, value, len(labels), weights[value], None, value == weight)
        for value in LAMBDAS
    ]
    weight = learnt.DEBIAS_LAMBDA if weight is None else weight
    totals = {v: sum((best(group, v, weight)[1] for group in kinds.values()), Tally()) for v in SURENESSES}
    sureness = max(SURENESSES, key=lambda v: (totals[v].rank, v))
    n = sum(map(len, kinds.values()))
    for value, total in totals.items():
        chosen = bool(n) and value == sureness
        rows.append(_row(model, "accept_at", NEUTRALISE, value, n, *_means(total, n), chosen))
    for kind, group in sorted(kinds.items()):
        rows += _order_rows(model, kind, group, sureness, weight)
    return rows


def bias_rows(model: str, found: Sequence[tuple[Item, Reply]]) -> list[dict[str, Any]]:
    """The constants of the control `constant_bias`."""
    return [
        _row(model, "constant_bias", label, value, len(found), None, None, True)
        for label, value in sorted(constants(found).items())
    ]


def by_kind(found: Sequence[Asked]) -> dict[Kind, list[Asked]]:
    """The flagged answers by cause, relevant modality and form."""
    kinds: dict[Kind, list[Asked]] = {}
    for one in found:
        if one.report.verdict.cause is not None and one.form is not None:
            kind = (one.report.verdict.cause.value, one.report.relevant.value, one.form)
            kinds.setdefault(kind, []).append(one)
    return kinds


def best(group: Sequence[Asked], accept_at: float, weight: float) -> tuple[Order, Tally]:
    """The order that leaves most answers right; of equals the cheapest, then none at all, then the longest:
    what was never needed costs nothing, and may be of use elsewhere.
    """
    tallies = {order: climbed(group, order, accept_at, weight) for order in ORDERS}
    order = max(ORDERS, key=lambda each: (tallies[each].rank, not each, len(each)))
    return order, tallies[order]


def climbed(group: Sequence[Asked], order: Order, accept_at: float, weight: float) -> Tally:
    """What these answers come to when their rungs are tried in this order."""
    named = {NEUTRALISE: _sure(accept_at), ESCALATE: ESCALATE, DEBIAS: _weighed(weight)}
    return sum((_climb(one, [named[rung] for rung in order]) for one in group), Tally())


def _climb(one: Asked, names: Sequence[str]) -> Tally:
    kept, tokens = one.served[ANNOTATE], 0
    for name in names:
        tried = one.served[name]
        tokens += tried.tokens - kept.tokens
        if tried.settled:
            return Tally(int(tried.right), tokens)
    return Tally(int(kept.right), tokens)


def _order_rows(
    model: str, kind: Kind, group: Sequence[Asked], accept_at: float, weight: float
) -> Iterator[dict[str, Any]]:
    chosen = best(group, accept_at, weight)[0] if len(group) >= ENOUGH else None
    for order in ORDERS:
        means = _means(climbed(group, order, accept_at, weight), len(group))
        key = "/".join((*kind, " ".join(order) or ANNOTATE))
        yield _row(model, "order", key, None, len(group), *means, order == chosen)


def _means(tally: Tally, n: int) -> tuple[float | None, float | None]:
    return (tally.right / n, tally.tokens / n) if n else (None, None)


def _row(
    model: str,
    kind: str,
    key: str,
    value: float | None,
    n: int,
    accuracy: float | None,
    tokens: float | None,
    chosen: bool,
) -> dict[str, Any]:
    return {
        "model": model,
        "kind": kind,
        "key": key,
        "value": value,
        "n": n,
        "accuracy": accuracy,
        "tokens": tokens,
        "chosen": chosen,
    }


def constants(found: Sequence[tuple[Item, Reply]]) -> dict[str, float]:
    """Minus each label's mean log-probability among the answers of its items: no label is preferred then."""
    seen: dict[str, list[float]] = {}
    for item, reply in found:
        for label, p in (over_answers(item, reply) or {}).items():
            seen.setdefault(label, []).append(math.log(max(p, LEAST)))
    return {label: -statistics.fmean(values) for label, values in seen.items()}


# -- read again --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """What a validation run chose."""

    debias_lambda: float
    accept_at: float
    orders: Mapping[Kind, Order]
    bias: Mapping[str, Mapping[str, float]]  # of each model, by label


def read_fit(path: Path, model: str) -> Fit:
    """What a validation run chose from this model's answers. Raises ConfigError where there was none."""
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
    except OSError as exc:
        raise ConfigError(
            f"{path} is not there: run `python -m bench mitigation --split validation` first"
        ) from exc
    chosen = [row for row in rows if row["chosen"]]
    own = [row for row in chosen if row["model"] == model]
    bias: dict[str, dict[str, float]] = {}
    for row in chosen:
        if row["kind"] == "constant_bias":
            bias.setdefault(row["model"], {})[row["key"]] = row["value"]
    return Fit(
        debias_lambda=next((row["value"] for row in own if row["kind"] == "lambda"), learnt.DEBIAS_LAMBDA),
        accept_at=next((row["value"] for row in own if row["kind"] == "accept_at"), learnt.ACCEPT_AT),
        orders=dict(_order_of(row["key"]) for row in own if row["kind"] == "order"),
        bias=bias,
    )


def _order_of(key: str) -> tuple[Kind, Order]:
    cause, relevant, form, rungs = key.split("/")
    return (cause, relevant, form), () if rungs == ANNOTATE else tuple(rungs.split())


def source(fit: Fit) -> str:
    """The text of `modint_guard/mitigation/fitted.py` for this fit."""
    orders = "".join(
        f"    {_quoted(kind)}: {_quoted(order)},\n" for kind, order in sorted(fit.orders.items())
    )
    return SOURCE.format(
        debias_lambda=float(fit.debias_lambda),
        accept_at=float(fit.accept_at),
        orders=f"{{\n{orders}}}" if orders else "{}",
    )


def _quoted(words: Sequence[str]) -> str:
    inner = ", ".join(f'"{word}"' for word in words)
    return f"({inner},)" if len(words) == 1 else f"({inner})"


SOURCE = '''\
"""Constants of mitigation, fitted on a validation split: written by `make bench-mitigation`, never by hand.

A test compares them with bench/results/mitigation_validation.json. Kinds of answers that have no order here
take that of `policy.REASONED`.
"""

from collections.abc import Mapping

DEBIAS_LAMBDA = {debias_lambda}
ACCEPT_AT = {accept_at}
# The ladder's rungs by cause, relevant modality and form of the answer, for kinds with enough flagged
# answers.
ORDERS: Mapping[tuple[str, str, str], tuple[str, ...]] = {orders}
'''
