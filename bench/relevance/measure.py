"""`python -m bench relevance`: how well it is told which modality ought to decide, and what is context.

Each row is one candidate on one part of the labelled requests. `learning`: authors held out in turn, from
whose requests the limits were chosen. `judging`: an author who chose nothing.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from bench.relevance.fit import Floats, Shown, calibrated, cross_fitted
from bench.relevance.fit_splitting import cross_fitted_chats
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
from bench.relevance.worlds import AUTHOR, world_requests
from modint_guard.chat.linear import shipped_classifier
from modint_guard.chat.relevance import believed, guess, label_probabilities
from modint_guard.chat.request import by_rules, parse
from modint_guard.evaluation.results import write_results
from modint_guard.types import Chat

RULES = Path(__file__).with_name("rules.json")  # what the lexical rules said, at the last commit with them
OVERLAP = 0.8
MIN_N = 20  # with fewer requests a share has no interval
GOALS = {
    "macro_f1": 0.8,
    "precision: text": 0.95,
    "false_context": 0.02,
    **{f"context: {placement}": 0.9 for placement in PLACEMENTS},
}
TITLE = "Which modality ought to decide, and what is context"
NOTES = f"""\
`rules`: the lexical rules that the package had before; what they said of authors b to e is kept in
bench/relevance/rules.json. `classifier`: its likeliest label. `limited`: the same, but unknown below the
limits that come with the weights. `default`: what the package says, that is, `limited` behind the few rules
of `modint_guard.chat.named_modality`, and without `image` where the context may be what is asked about.
`learning`: each author held out in turn. `judging`: author a. `splitting`: how context is told from question,
by the splitter and, in the rows that begin with `rules:`, by the rules whose word is one of its features.

`macro_f1` is over image, text and both; what is left unknown is missed. `covered`: the share of requests of
which anything is said. By language: the share of right labels; "neither" is right where nothing is said.
`context` by placement: the share of requests whose context is recovered, that is, 2·|both| / (|found| +
|labelled|) in letters is at least {OVERLAP}. `false_context`: of the requests without context, the share in
which some is found. Intervals: 95 %, Clopper-Pearson, from {MIN_N} requests on. No feature, limit or wording
was chosen on the judging requests; they have been measured five times, last for this table."""


def measure_relevance(output: Path, *, judging: bool) -> None:
    """Measure all candidates and write the table. judging: also on the requests that are for judging."""
    rows = [*_learning_rows(), *(_judging_rows() if judging else ())]
    write_results(output, command="python -m bench relevance", seeds=[0], rows=rows, title=TITLE, notes=NOTES)


def _learning_rows() -> Iterator[dict[str, Any]]:
    requests = read_requests(LEARNING)
    every = [*requests, *world_requests()]
    chats = cross_fitted_chats(every)
    shown = Shown.of(every, chats)
    by_hand = shown.authors != AUTHOR
    scores, labels = cross_fitted(shown)[by_hand], shown.labels[by_hand]
    probabilities = calibrated(scores, labels, shown.authors[by_hand]) * shown.possible[by_hand]
    said = json.loads(RULES.read_text("utf-8"))
    known = [request for request in requests if request.id in said]  # those of b to e
    yield from relevance_rows("rules", "learning", known, [said[request.id] for request in known])
    yield from _classifier_rows("learning", requests, chats[: len(requests)], probabilities)
    yield from splitting_rows("learning", requests, chats)


def _judging_rows() -> Iterator[dict[str, Any]]:
    judged, model = len(read_requests(JUDGING)), shipped_classifier().model
    requests = read_requests([*LEARNING, *JUDGING])[-judged:]  # together: none may stand in both
    chats = [parse(request.body, decode=False) for request in requests]
    probabilities = [[*label_probabilities(chat, model).values()] for chat in chats]
    yield from _classifier_rows("judging", requests, chats, np.array(probabilities))
    yield from splitting_rows("judging", requests, chats)


def _classifier_rows(
    part: str, requests: Sequence[LabelledRequest], chats: Sequence[Chat], probabilities: Floats
) -> Iterator[dict[str, Any]]:
    """The rows of the classifier, without and with its limits, and behind the rules."""
    limits = shipped_classifier().limits
    shares = probabilities / probabilities.sum(1, keepdims=True)
    by_label = [dict(zip(LABELS, row, strict=True)) for row in shares.tolist()]
    told = {
        "classifier": [LABELS[number] for number in shares.argmax(1)],
        "limited": [believed(row, limits) or "unknown" for row in by_label],
        "default": [
            guess(chat, row, limits).relevant.value for chat, row in zip(chats, by_label, strict=True)
        ],
    }
    for candidate, labels in told.items():
        yield from relevance_rows(candidate, part, requests, labels)


def relevance_rows(
    candidate: str, part: str, requests: Sequence[LabelledRequest], labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The rows of a candidate that gives each request one of LABELS or "unknown"."""
    pairs = [(request.relevant, label) for request, label in zip(requests, labels, strict=True)]
    scores = [_f1(label, pairs) for label in LABELS[:3]]
    yield _row(candidate, part, "macro_f1", float(np.mean(scores)), None, None, len(pairs))
    for label in LABELS:
        said = [truth == label for truth, told in pairs if told == label]
        needed = [told == label for truth, told in pairs if truth == label]
        yield _share(candidate, part, f"precision: {label}", said)
        yield _share(candidate, part, f"recall: {label}", needed)
    yield _share(candidate, part, "covered", [told != "unknown" for _, told in pairs])
    for language in sorted({request.language for request in requests}):
        right = [
            _is_right(*pair)
            for request, pair in zip(requests, pairs, strict=True)
            if request.language == language
        ]
        yield _share(candidate, part, f"language: {language}", right)


def splitting_rows(
    part: str, requests: Sequence[LabelledRequest], chats: Sequence[Chat]
) -> Iterator[dict[str, Any]]:
    """How much of the context is found, by its place, and how often some where there is none; the same by the
    rules alone. chats: the requests, divided.
    """
    pairs = [*zip(requests, chats, strict=False)]
    by_splitter = [frozenset(letters_in(r.body, chat.context_spans)) for r, chat in pairs]
    ruled = [frozenset(letters_in(r.body, by_rules(r.body).context)) for r in requests]
    for before, found in (("", by_splitter), ("rules: ", ruled)):
        for placement in PLACEMENTS:
            recovered = [
                overlap(request, letters) >= OVERLAP
                for request, letters in zip(requests, found, strict=True)
                if request.placement == placement
            ]
            yield _share("splitting", part, f"{before}context: {placement}", recovered)
        false = [bool(f) for request, f in zip(requests, found, strict=True) if not request.contexts]
        yield _share("splitting", part, f"{before}false_context", false)


def overlap(request: LabelledRequest, context: frozenset[tuple[int, int | None, int]]) -> float:
    """2·|both| / (|found| + |labelled|), in letters of the context; 1 if there is none of either."""
    labelled = labelled_letters(request)
    total = len(labelled) + len(context)
    return 2 * len(labelled & context) / total if total else 1.0


def _is_right(truth: str, told: str) -> bool:
    return truth == told or (truth == "neither" and told == "unknown")


def _f1(label: str, pairs: Sequence[tuple[str, str]]) -> float:
    both = sum(truth == label == told for truth, told in pairs)
    total = sum(truth == label for truth, _ in pairs) + sum(told == label for _, told in pairs)
    return 2 * both / total if total else 0.0


def _share(candidate: str, part: str, measure: str, right: Sequence[bool]) -> dict[str, Any]:
    """A share with its Clopper-Pearson interval of 95 %; none of nothing."""
    n, count = len(right), sum(right)
    if not n:
        return _row(candidate, part, measure, None, None, None, 0)
    if n < MIN_N:
        return _row(candidate, part, measure, count / n, None, None, n)
    low = float(beta.ppf(0.025, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, n - count)) if count < n else 1.0
    return _row(candidate, part, measure, count / n, low, high, n)


def _row(
    candidate: str,
    part: str,
    measure: str,
    value: float | None,
    low: float | None,
    high: float | None,
    n: int,
) -> dict[str, Any]:
    goal = GOALS.get(measure) if candidate in ("classifier", "default", "splitting") else None
    met = (
        None
        if goal is None or value is None
        else value <= goal
        if measure == "false_context"
        else value >= goal
    )
    return {
        "candidate": candidate,
        "set": part,
        "measure": measure,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "goal": goal,
        "met": met,
    }
