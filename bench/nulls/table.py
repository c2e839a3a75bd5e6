"""From records to rows: the null of the one half, and what it says of the other half and of lies. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any

from bench.nulls.inputs import LIES, NULL, TEMPERATURES, TESTED, TOKENS
from bench.spans.intervals import at_most, interval
from modint_guard.config import GuardConfig
from modint_guard.evaluation.results import ResultRow
from modint_guard.judging.null import Null, NullScore
from modint_guard.judging.verdict import by_null, by_rule
from modint_guard.types import JSON, TEACHER_FORCED, Statistic

ALL = "all"
HARMLESS = "harmless"
CONFIG = GuardConfig()
NOTES = f"""\
Answers of the picture-book's base through vLLM and the gateway; requests say what is relevant. The null is
taken from right answers beside harmless inputs of one half of kinds, wordings and forms, both temperatures in
one pool; the rows are of the other half, and of lies (`bench/nulls/inputs.py` lists all of them). `tokens`: 1
and 5 are the most that a short answer may have; longer ones were made as long as that (`min_tokens`), in the
words of the world's answers (`bench/nulls/vocabulary.py`), and count as right if their beginning is: what a
model is made to write behind its answer is neither right nor wrong. `asked`: answers; `n`: those that count.
Harmless: right ones that have a score, for none is flagged without one. Lies: answers that were right without
the lie and wrong with it, with a score or not. `whole`: of them, scored at every token; the others were
judged at their first, and so count as answers of one token. `near`: scores of about the answer's length in
the null, median. `resolved`: the share of answers for which the null knows enough of them; the others are
judged by the rule for models without a null, as the product does. `flagged`, and its `share` of `n`: p is at
most alpha = {CONFIG.alpha}, and what ought to decide is sure that the answer is wrong (`sure` =
{CONFIG.thresholds.sure}, which was not measured here); `low` to `high`: 95 % interval (Clopper-Pearson), `at
most`: the one-sided bound of 95 %. `unusual`: p is at most alpha, sure or not. `by rule`: flagged if there
were no null, with its share. `prior` and `neglect`, which no null weighs, are not counted. Goals: a share of
at most {CONFIG.alpha + 0.01:g} of harmless inputs in each row, and of at least 0.85 of lies."""


def rows_of(records: Sequence[JSON]) -> Iterator[ResultRow]:
    """A row for each temperature and length, for all of them, for each kind of input, and for lies."""
    null = null_of(records)
    tested = [record for record in records if record.get("half") == TESTED]
    for temperature in TEMPERATURES:
        for tokens in TOKENS:
            cell = [each for each in tested if (each["temperature"], each["tokens"]) == (temperature, tokens)]
            yield _harmless_row(null, cell, ALL, temperature, tokens)
    for kind in (ALL, *sorted({record["kind"] for record in tested})):
        of_kind = [record for record in tested if kind in (ALL, record["kind"])]
        yield _harmless_row(null, of_kind, kind, ALL, ALL)
    for kind in LIES:
        told = [record for record in records if record["kind"] == kind]
        changed = [record for record in told if record["changed"]]
        yield _row(null, "lies", kind, TEMPERATURES[0], ALL, len(told), changed)


def null_of(records: Iterable[JSON]) -> Null:
    """The null of the half that makes it: the score of each right answer that has one."""
    return Null(
        tuple(
            NullScore(record["score"], record["length"])
            for record in records
            if record.get("half") == NULL and _counts(record)
        )
    )


def _counts(record: JSON) -> bool:
    return record["score"] is not None and bool(record["right"])


def _harmless_row(
    null: Null, records: Sequence[JSON], kind: str, temperature: int | str, tokens: int | str
) -> dict[str, Any]:
    counted = [record for record in records if _counts(record)]
    return _row(null, HARMLESS, kind, temperature, tokens, len(records), counted)


def _row(
    null: Null,
    inputs: str,
    kind: str,
    temperature: int | str,
    tokens: int | str,
    asked: int,
    counted: Sequence[JSON],
) -> dict[str, Any]:
    """The row of the answers that count."""
    alpha, thresholds, n = CONFIG.alpha, CONFIG.thresholds, len(counted)
    lengths = [record["length"] for record in counted]
    found = [_statistic(record) for record in counted]
    by_rules = [by_rule(each, thresholds).flags for each in found]
    weighed = [by_null(each, null, thresholds, alpha) for each in found]
    flagged = sum(each.flags if each else rule for each, rule in zip(weighed, by_rules, strict=True))
    low, high = interval(flagged, n)
    return {
        **{"inputs": inputs, "kind": kind, "temperature": temperature, "tokens": tokens},
        **{"asked": asked, "n": n},
        "whole": sum(record["method"] == TEACHER_FORCED for record in counted),
        "near": int(median(null.near(length) for length in lengths)) if n else None,
        "resolved": sum(null.resolves(alpha, length) for length in lengths) / n if n else None,
        **{"flagged": flagged, "share": flagged / n if n else None},
        **{"low": low, "high": high, "at most": at_most(flagged, n)},
        "unusual": sum(_is_unusual(each, null) for each in found),
        "by rule": sum(by_rules),
        "by rule share": sum(by_rules) / n if n else None,
    }


def _statistic(record: JSON) -> Statistic | None:
    return None if record["score"] is None else Statistic(record["score"], record["length"])


def _is_unusual(statistic: Statistic | None, null: Null) -> bool:
    if statistic is None or not null.resolves(CONFIG.alpha, statistic.length):
        return False
    return null.p_value(*statistic) <= CONFIG.alpha
