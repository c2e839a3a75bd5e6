"""`python -m bench splitting-fit`: fits the splitter on the committed requests, on variants of them and on
the bundled worlds' own, and writes its file and card.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.relevance.cases import case_requests
from bench.relevance.chain import Example, fit_chain
from bench.relevance.requests import (
    LEARNING,
    SETS,
    LabelledRequest,
    digest,
    folds,
    read_requests,
)
from bench.relevance.variants import Marked, marked, variants
from bench.relevance.worlds import AUTHOR, world_requests
from modint_guard.chat.learnt_split import joined, read_texts
from modint_guard.chat.request import by_rules, parse
from modint_guard.chat.split_features import split_features
from modint_guard.chat.splitter import SPLITTER, Splitter, write_splitter
from modint_guard.types import Chat

# The least gain of a context where the rules see one, too, and elsewhere: with authors held out in turn,
# higher ones miss more contexts than they spare false ones, and the rules alone then find more in parts.
LIMITS = (-2.0, 1.0)
_VARIANT = 0.25  # what a mistake in a variant costs, beside 1 in a request
_WITHOUT = 2.0  # times what one costs where there is no context


def write_fitted_splitter(output: Path | None = None) -> Path:
    """Fit on the committed requests and on the bundled worlds' own; write the file and its card beside it."""
    path = output or SPLITTER
    requests = read_requests()
    splitter = fit_splitter(requests)
    write_splitter(splitter, path)
    card = {
        "command": "python -m bench splitting-fit",
        "sha256": digest(path),
        "sets": {name: digest(SETS / f"{name}.jsonl") for name in LEARNING},
        "requests": len(requests),
        "limits": list(splitter.limits),
        "table": "bench/results/relevance.md",
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    return path


def fit_splitter(requests: Sequence[LabelledRequest]) -> Splitter:
    """The splitter that these requests, their variants and the worlds' requests teach."""
    return replace(fit_chain([*examples_of(requests), *_further_examples()]), limits=LIMITS)


def cross_fitted_splitters(requests: Sequence[LabelledRequest]) -> dict[str, Splitter]:
    """For each author a splitter that saw none of the author's requests."""
    further = _further_examples()
    by_author: dict[str, list[Example]] = {}
    for request in requests:
        by_author.setdefault(request.author, []).extend(examples_of([request]))
    splitters: dict[str, Splitter] = {}
    for held in folds(by_author):
        others = [example for other in by_author if other not in held for example in by_author[other]]
        splitters |= dict.fromkeys(held, replace(fit_chain([*others, *further]), limits=LIMITS))
    return splitters


def cross_fitted_chats(requests: Sequence[LabelledRequest]) -> list[Chat]:
    """The requests as divided by splitters that saw none of their author's; the worlds' by the package's."""
    splitters = cross_fitted_splitters([r for r in requests if r.author != AUTHOR])
    return [parse(r.body, decode=False, splitter=splitters.get(r.author)) for r in requests]


def _further_examples() -> list[Example]:
    """Of the bundled worlds, and of plain cases; none of them is held out or measured."""
    return [*examples_of(world_requests(), varied=False), *examples_of(case_requests(), varied=False)]


def examples_of(requests: Sequence[LabelledRequest], *, varied: bool = True) -> list[Example]:
    """The requests, and their variants, as examples; those are left out that are too long to be read."""
    made = [(marked(request), 1.0 if request.contexts else _WITHOUT) for request in requests]
    if varied:
        made += [
            (variant, _VARIANT * (1.0 if any(map(any, variant.marks.values())) else _WITHOUT))
            for request in requests
            for variant in variants(request)
        ]
    return [example for request, weight in made if (example := _example(request, weight))]


def _example(request: Marked, weight: float) -> Example | None:
    ruled = by_rules(request.body)
    read = read_texts(ruled)
    if len(read) < len(ruled.texts):
        return None
    marks = np.zeros(sum(len(text.text) + 1 for text in read), bool)
    at = 0
    for text in read:
        if (flags := request.marks.get((text.message, text.part))) is not None:
            marks[at : at + len(flags)] = flags
        at += len(text.text) + 1
    features = split_features(joined(ruled, read))
    counted = np.append(0, np.cumsum(marks))
    inside = counted[features.tokens.ends] - counted[features.tokens.starts]
    return Example(features, 2 * inside > features.tokens.ends - features.tokens.starts, weight)
