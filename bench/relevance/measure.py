"""`python -m bench relevance`: how well it is told which modality ought to decide, and what is context.

Each row is one candidate on one part of the labelled requests. `learning`: authors held out in turn, from
whose answers the thresholds were chosen. `judging`: an author who chose nothing.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from bench.relevance.fit import calibrated, cross_fitted
from bench.relevance.requests import (
    JUDGING,
    LABELS,
    LEARNING,
    PLACEMENTS,
    LabelledRequest,
    labelled_letters,
    letters_in,
    read_requests,
)
from bench.relevance.worlds import world_requests
from modint_guard.chat.linear import shipped_reader
from modint_guard.chat.relevance import believed, label_probabilities, probabilities_of
from modint_guard.chat.request import parse
from modint_guard.evaluation.results import write_results
from modint_guard.types import Chat

RULES = Path(__file__).with_name(
    "rules.json"
)  # what the lexical rules said, at the last commit that had them
BINS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
OVERLAP = 0.8
TITLE = "Which modality ought to decide, and what is context"
NOTES = """\
`rules`: the lexical rules that the package had before; what they said is kept in bench/relevance/rules.json.
`classifier`: its likeliest label. `default`: the same with the thresholds of `modint_guard.chat.relevance`,
below which the relevance is unknown. `learning`: authors b to e, each held out in turn. `judging`: author a.
Language and domain: the share of right labels, "neither" never counting as right where it is unknown.

`macro_f1` is over image, text and both; what is left unknown is missed. `context` by placement: the share of
requests whose context is recovered, that is, 2·|both| / (|found| + |labelled|) in letters is at least .8.
`false_context`: of the requests without context, the share in which some is found. `reliability`: of the
requests whose likeliest label has this probability, the share in which it is right. Intervals: 95 %,
Clopper-Pearson. The model's own word (`self_ask`) is not measured here: it needs a real model."""
READINGS = """

The judging set was read once, after the method, its features and its thresholds had been chosen on the
learning set: READING."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a candidate tells of one request: a label or "unknown", its probability, and the context's
    letters.
    """

    label: str
    probability: float | None
    context: frozenset[tuple[int, int | None, int]]


def measure_relevance(output: Path) -> None:
    """Measure all candidates on both sets, and write the table."""
    rows = [*_learning_rows(), *_judging_rows()]
    write_results(
        output,
        command="python -m bench relevance",
        seeds=[0],
        rows=rows,
        title=TITLE,
        notes=NOTES + READINGS,
        shown=shown(rows),
    )


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: a line for each measure, a column for each candidate on each set."""
    columns = [*dict.fromkeys((row["set"], row["candidate"]) for row in rows)]
    cells = {(row["measure"], row["set"], row["candidate"]): _cell(row) for row in rows}
    lines = [
        ["measure", *(f"{part}: {candidate}" for part, candidate in columns)],
        ["---"] * (1 + len(columns)),
    ]
    for measure in dict.fromkeys(row["measure"] for row in rows):
        lines.append([measure, *(cells.get((measure, *column), "–") for column in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row: Mapping[str, Any]) -> str:
    if row["value"] is None or row["ci_low"] is None:
        return "–" if row["value"] is None else f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] of {row['n']}"


def _learning_rows() -> list[dict[str, Any]]:
    requests = read_requests(LEARNING)
    n = len(requests)
    chats, scores, labels = cross_fitted([*requests, *world_requests()])
    probabilities = calibrated(scores[:n], labels[:n], [request.author for request in requests])
    by_label = [probabilities_of(chat, row) for chat, row in zip(chats[:n], probabilities, strict=True)]
    return [*rules_rows(requests, "learning"), *classifier_rows(requests, chats[:n], by_label, "learning")]


def _judging_rows() -> list[dict[str, Any]]:
    requests, reader = read_requests(JUDGING), shipped_reader()
    chats = [parse(request.body) for request in requests]
    by_label = [label_probabilities(chat, reader.relevance) for chat in chats]
    return [*rules_rows(requests, "judging"), *classifier_rows(requests, chats, by_label, "judging")]


def rules_rows(requests: Sequence[LabelledRequest], part: str) -> list[dict[str, Any]]:
    """The rows of the lexical rules, from what they said."""
    said = json.loads(RULES.read_text("utf-8"))["said"]
    told = [
        Told(
            said[r.id]["label"],
            None,
            frozenset((m, p, i) for m, p, a, b in said[r.id]["context"] for i in range(a, b)),
        )
        for r in requests
    ]
    return [*_rows("rules", part, requests, told)]


def classifier_rows(
    requests: Sequence[LabelledRequest],
    chats: Sequence[Chat],
    by_label: Sequence[dict[str, float]],
    part: str,
) -> list[dict[str, Any]]:
    """The rows of the classifier, with and without its thresholds."""
    context = [frozenset(letters_in(chat.body, chat.context_spans)) for chat in chats]
    best = [_likeliest(row) for row in by_label]
    likeliest = [Told(b, row[b], c) for b, row, c in zip(best, by_label, context, strict=True)]
    default = [
        Told(believed(row) or "unknown", row[b], c) for b, row, c in zip(best, by_label, context, strict=True)
    ]
    return [
        *_rows("classifier", part, requests, likeliest),
        *_reliability("classifier", part, requests, likeliest),
        *_rows("default", part, requests, default),
    ]


def _rows(
    candidate: str, part: str, requests: Sequence[LabelledRequest], told: Sequence[Told]
) -> Iterator[dict[str, Any]]:
    for measure, value, low, high, n in _measures(requests, told):
        yield _row(candidate, part, measure, value, low, high, n)
    pairs = [*zip(requests, told, strict=True)]
    for kind in ("language", "domain"):
        for name in sorted({getattr(request, kind) for request in requests}):
            some = [(r, t) for r, t in pairs if getattr(r, kind) == name]
            right = sum(_is_right(r, t) for r, t in some)
            yield _row(candidate, part, f"{kind}: {name}", *_share(right, len(some)))


def _measures(
    requests: Sequence[LabelledRequest], told: Sequence[Told]
) -> Iterator[tuple[str, float | None, float | None, float | None, int]]:
    scores = [_f1(label, requests, told) for label in LABELS[:3]]
    yield "macro_f1", float(np.mean(scores)), None, None, len(requests)
    for label in LABELS:
        says = [r.relevant == label for r, t in zip(requests, told, strict=True) if t.label == label]
        is_so = [t.label == label for r, t in zip(requests, told, strict=True) if r.relevant == label]
        yield f"precision: {label}", *_share(sum(says), len(says))
        yield f"recall: {label}", *_share(sum(is_so), len(is_so))
    yield "unknown", *_share(sum(t.label == "unknown" for t in told), len(told))
    for placement in PLACEMENTS:
        found = [
            overlap(r, t) >= OVERLAP for r, t in zip(requests, told, strict=True) if r.placement == placement
        ]
        yield f"context: {placement}", *_share(sum(found), len(found))
    false = [bool(t.context) for r, t in zip(requests, told, strict=True) if not r.contexts]
    yield "false_context", *_share(sum(false), len(false))


def _reliability(
    candidate: str, part: str, requests: Sequence[LabelledRequest], told: Sequence[Told]
) -> Iterator[dict[str, Any]]:
    for low, high in itertools.pairwise(BINS):
        some = [
            r.relevant == t.label
            for r, t in zip(requests, told, strict=True)
            if low < (t.probability or 0) <= high
        ]
        yield _row(candidate, part, f"reliability: {low:g} to {high:g}", *_share(sum(some), len(some)))


def _likeliest(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=lambda name: probabilities[name])


def overlap(request: LabelledRequest, told: Told) -> float:
    """2·|both| / (|found| + |labelled|), in letters of the context; 1 if there is none of either."""
    labelled = labelled_letters(request)
    total = len(labelled) + len(told.context)
    return 2 * len(labelled & told.context) / total if total else 1.0


def _is_right(request: LabelledRequest, told: Told) -> bool:
    return told.label == request.relevant


def _f1(label: str, requests: Sequence[LabelledRequest], told: Sequence[Told]) -> float:
    both = sum(r.relevant == label == t.label for r, t in zip(requests, told, strict=True))
    total = sum(r.relevant == label for r in requests) + sum(t.label == label for t in told)
    return 2 * both / total if total else 0.0


def _share(count: int, n: int) -> tuple[float | None, float | None, float | None, int]:
    """A share with its Clopper-Pearson interval of 95 %; none of nothing."""
    if not n:
        return None, None, None, 0
    low = float(beta.ppf(0.025, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, n - count)) if count < n else 1.0
    return count / n, low, high, n


def _row(
    candidate: str,
    part: str,
    measure: str,
    value: float | None,
    low: float | None,
    high: float | None,
    n: int,
) -> dict[str, Any]:
    return {
        "candidate": candidate,
        "set": part,
        "measure": measure,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": n,
    }
