"""The choices made on validation: the order of the rungs, the confidence to accept, the contrast's weight.

Every rung is tried alone on every flagged answer; an order's answer is then that of its first rung that
settles it. Orders are compared separately for each cause, relevant modality and form of the answer.
"""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from bench.mitigation.answers import PATIENT, ItemAnswers, over_answers
from modint_guard.data.item import Item
from modint_guard.errors import ConfigError
from modint_guard.evaluation.statistics import mean
from modint_guard.mitigation import fitted
from modint_guard.mitigation.policy import Policy
from modint_guard.models import ADAPTER
from modint_guard.types import ANNOTATE, DEBIAS, ESCALATE, NEUTRALISE, Reply

LAMBDAS = tuple(0.25 * step for step in range(1, 13))
CONFIDENCES = (0.0, 0.3, 0.5, 0.7, 0.9, 0.99)
TRIED = (NEUTRALISE, ESCALATE, DEBIAS)  # `rerank` is for longer answers, which TinyWorld lacks
ORDERS = tuple(order for size in range(len(TRIED) + 1) for order in permutations(TRIED, size))
ENOUGH = 20  # flagged answers of a kind; with fewer its order stays the reasoned one
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
LEAST = 1e-12  # a probability: that of a listed label may have underflowed to 0


@dataclass(frozen=True)
class Tally:
    """How many of a group's answers end up right, and the tokens spent beyond the verdict."""

    right: int = 0
    tokens: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.right + other.right, self.tokens + other.tokens)

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts tallies: higher is better."""
        return self.right, -self.tokens


def grid(robust: str = ADAPTER) -> dict[str, Policy]:
    """A policy for every rung alone and every value on the grids of lambda and of the confidence; `robust` is
    the adapter that is asked."""
    neutralise = {_with_confidence(v): Policy(NEUTRALISE, accept_at=v, **PATIENT) for v in CONFIDENCES}
    contrast = {_with_lambda(v): Policy(DEBIAS, debias_lambda=v, **PATIENT) for v in LAMBDAS}
    return {**neutralise, ESCALATE: Policy(ESCALATE, robust=robust, **PATIENT), **contrast}


def _with_confidence(value: float) -> str:
    return f"{NEUTRALISE} accept_at={value:g}"


def _with_lambda(value: float) -> str:
    return f"{DEBIAS} lambda={value:g}"


def fit_rows(model: str, answers: Sequence[ItemAnswers]) -> list[dict[str, Any]]:
    """Rows of what was compared on the validation answers of one model, and what was chosen."""
    kinds = by_kind(answers)
    labels = [one for kind, group in kinds.items() for one in group if kind[2] == "options"]
    weights = {v: mean([one.served[_with_lambda(v)].right for one in labels]) for v in LAMBDAS}
    weight = max(LAMBDAS, key=lambda value: weights[value] or 0.0) if labels else None
    rows = [
        _row(model, "lambda", DEBIAS, value, len(labels), weights[value], None, value == weight)
        for value in LAMBDAS
    ]
    weight = fitted.DEBIAS_LAMBDA if weight is None else weight
    totals = {v: sum((best(group, v, weight)[1] for group in kinds.values()), Tally()) for v in CONFIDENCES}
    confidence = max(CONFIDENCES, key=lambda v: (totals[v].rank, v))
    n = sum(map(len, kinds.values()))
    for value, total in totals.items():
        chosen = bool(n) and value == confidence
        rows.append(_row(model, "accept_at", NEUTRALISE, value, n, *_means(total, n), chosen))
    for kind, group in sorted(kinds.items()):
        rows += _order_rows(model, kind, group, confidence, weight)
    return rows


def bias_rows(model: str, answers: Sequence[tuple[Item, Reply]]) -> list[dict[str, Any]]:
    """Rows of the constants of the control `constant_bias`."""
    return [
        _row(model, "constant_bias", label, value, len(answers), None, None, True)
        for label, value in sorted(constants(answers).items())
    ]


def by_kind(answers: Sequence[ItemAnswers]) -> dict[Kind, list[ItemAnswers]]:
    """The flagged answers by cause, relevant modality and form."""
    kinds: dict[Kind, list[ItemAnswers]] = {}
    for one in answers:
        if one.report.verdict.cause is not None and one.form is not None:
            kind = (one.report.verdict.cause.value, one.report.relevant.value, one.form)
            kinds.setdefault(kind, []).append(one)
    return kinds


def best(group: Sequence[ItemAnswers], accept_at: float, weight: float) -> tuple[Order, Tally]:
    """The order that leaves most answers right; of equal ones the cheapest, then the empty one, then the
    longest: a rung that was never needed cost nothing, and may be useful for other answers.
    """
    tallies = {order: tried_in(group, order, accept_at, weight) for order in ORDERS}
    order = max(ORDERS, key=lambda each: (tallies[each].rank, not each, len(each)))
    return order, tallies[order]


def tried_in(group: Sequence[ItemAnswers], order: Order, accept_at: float, weight: float) -> Tally:
    """The tally of these answers if their rungs are tried in this order."""
    policies = {NEUTRALISE: _with_confidence(accept_at), ESCALATE: ESCALATE, DEBIAS: _with_lambda(weight)}
    return sum((_try(one, [policies[rung] for rung in order]) for one in group), Tally())


def _try(one: ItemAnswers, names: Sequence[str]) -> Tally:
    greedy, tokens = one.served[ANNOTATE], 0
    for name in names:
        tried = one.served[name]
        tokens += tried.tokens - greedy.tokens
        if tried.settled:
            return Tally(int(tried.right), tokens)
    return Tally(int(greedy.right), tokens)


def _order_rows(
    model: str, kind: Kind, group: Sequence[ItemAnswers], accept_at: float, weight: float
) -> Iterator[dict[str, Any]]:
    chosen = best(group, accept_at, weight)[0] if len(group) >= ENOUGH else None
    for order in ORDERS:
        means = _means(tried_in(group, order, accept_at, weight), len(group))
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


def constants(answers: Sequence[tuple[Item, Reply]]) -> dict[str, float]:
    """Minus each label's mean log-probability over the answers to its items: with it no label is
    preferred."""
    logs: dict[str, list[float]] = {}
    for item, reply in answers:
        for label, p in (over_answers(item, reply) or {}).items():
            logs.setdefault(label, []).append(math.log(max(p, LEAST)))
    return {label: -statistics.fmean(values) for label, values in logs.items()}


# -- reading the choices -----------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """The choices of a validation run."""

    debias_lambda: float
    accept_at: float
    orders: Mapping[Kind, Order]
    bias: Mapping[str, Mapping[str, float]]  # of each model, by label


def read_fit(path: Path, model: str) -> Fit:
    """The choices that a validation run made from this model's answers. ConfigError without such a run."""
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
    except OSError as exc:
        raise ConfigError(
            f"{path} is not there: run `python -m bench mitigation --split validation` first"
        ) from exc
    chosen = [row for row in rows if row["chosen"]]
    of_model = [row for row in chosen if row["model"] == model]
    bias: dict[str, dict[str, float]] = {}
    for row in chosen:
        if row["kind"] == "constant_bias":
            bias.setdefault(row["model"], {})[row["key"]] = row["value"]
    return Fit(
        debias_lambda=next(
            (row["value"] for row in of_model if row["kind"] == "lambda"), fitted.DEBIAS_LAMBDA
        ),
        accept_at=next((row["value"] for row in of_model if row["kind"] == "accept_at"), fitted.ACCEPT_AT),
        orders=dict(_order_of(row["key"]) for row in of_model if row["kind"] == "order"),
        bias=bias,
    )


def _order_of(key: str) -> tuple[Kind, Order]:
    cause, relevant, form, rungs = key.split("/")
    return (cause, relevant, form), () if rungs == ANNOTATE else tuple(rungs.split())


def fitted_source(fit: Fit) -> str:
    """The source text of `modint_guard/mitigation/fitted.py` for this fit."""
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
