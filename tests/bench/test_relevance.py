"""Labelled requests, how the classifier of relevance is fitted on them, and how it is measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.relevance.fit import digest, fit_classifier, limits_of
from bench.relevance.measure import OVERLAP, overlap, relevance_rows
from bench.relevance.requests import (
    JUDGING,
    LABELS,
    LEARNING,
    PLACEMENTS,
    SETS,
    LabelledRequest,
    as_labelled,
    labelled_letters,
    letters_in,
    read_requests,
    texts_of,
)
from bench.relevance.worlds import world_requests
from modint_guard.chat.linear import WEIGHTS, write_classifier
from modint_guard.chat.relevance import decide
from modint_guard.chat.request import parse
from modint_guard.types import Span

PLAIN = LabelledRequest(
    id="x",
    author="b",
    domain="photo",
    language="en",
    body={"messages": [{"role": "user", "content": "It is red. What is it?"}]},
    relevant="image",
    contexts=("It is red.",),
    question="What is it?",
    placement="before",
)


@pytest.mark.parametrize("name", [*LEARNING, *JUDGING])
def test_the_committed_requests_keep_their_format(name: str) -> None:
    requests = read_requests([name])
    assert len(requests) >= 600
    assert all(request.relevant in LABELS for request in requests)
    assert all(request.placement in (*PLACEMENTS, "none") for request in requests)
    assert all(bool(request.contexts) == (request.placement != "none") for request in requests)
    assert all(any(r.question in text for _, _, text in texts_of(r.body)) for r in requests)


def test_no_request_stands_in_two_sets() -> None:
    requests = read_requests([*LEARNING, *JUDGING])
    assert len({request.id for request in requests}) == len(requests)
    texts = [tuple(text for _, _, text in texts_of(request.body)) for request in requests]
    assert len(texts) - len(set(texts)) <= 1  # two people may ask the same in three words


def test_the_letters_of_the_context_are_those_of_the_substring() -> None:
    assert labelled_letters(PLAIN) == {(0, None, i) for i in (0, 1, 3, 4, 6, 7, 8, 9)}
    assert letters_in(PLAIN.body, [Span(0, None, 10, 15)]) == {(0, None, i) for i in (11, 12, 13, 14)}


def test_overlap_is_twice_the_common_letters_over_all() -> None:
    letters = frozenset(labelled_letters(PLAIN))
    assert overlap(PLAIN, letters) == 1.0
    more = letters | {(0, None, i) for i in range(11, 15)}
    assert overlap(PLAIN, more) == pytest.approx(2 * 8 / 20)
    assert overlap(PLAIN, frozenset()) == 0.0 < OVERLAP
    assert overlap(replace(PLAIN, contexts=()), frozenset()) == 1.0


def test_a_request_can_be_divided_as_its_labels_say() -> None:
    chat = as_labelled(PLAIN, parse(PLAIN.body))
    assert (chat.context, chat.question) == ("It is red.", "What is it?")
    assert (chat.context_spans, chat.question_spans) == ((Span(0, None, 0, 10),), (Span(0, None, 11, 22),))


def test_precision_recall_and_f1_count_what_was_left_unknown_as_missed() -> None:
    requests = [replace(PLAIN, relevant=label) for label in ("image", "image", "text", "both", "neither")]
    told = ["image", "unknown", "image", "both", "unknown"]
    rows = {row["measure"]: row for row in relevance_rows("default", "learning", requests, told)}
    assert rows["precision: image"]["value"] == 0.5
    assert rows["recall: image"]["value"] == 0.5
    assert rows["covered"]["value"] == pytest.approx(3 / 5)
    assert rows["macro_f1"]["value"] == pytest.approx((2 / 4 + 0 + 1) / 3)
    assert rows["macro_f1"]["met"] is False
    assert rows["language: en"]["value"] == pytest.approx(3 / 5)
    assert rows["precision: text"]["value"] is None and rows["precision: text"]["met"] is None
    assert rows["recall: both"]["ci_low"] is None  # one request has no interval


def test_a_share_of_twenty_has_an_exact_interval() -> None:
    rows = {
        row["measure"]: row for row in relevance_rows("default", "learning", [PLAIN] * 20, ["image"] * 20)
    }
    # Clopper-Pearson for 20 of 20: the lower end is .025 ** (1 / 20).
    assert rows["recall: image"]["ci_low"] == pytest.approx(0.025 ** (1 / 20))
    assert rows["recall: image"]["ci_high"] == 1.0


def test_a_label_is_believed_from_where_it_is_right_often_enough() -> None:
    certain = np.linspace(0.5, 0.98, 49)
    probabilities = np.stack([certain, 1 - certain, 0 * certain, 0 * certain], axis=1)
    labels = np.where(certain >= 0.7, 0, 2)
    image, text, both, neither = limits_of(probabilities, labels)
    # From .68 on there are 31 answers, 29 of them right; from .66 on 29 of 33, fewer than nine in ten.
    assert image == pytest.approx(0.67, abs=0.011)
    assert (text, both, neither) == (1.0, 1.0, 1.0)


def test_the_same_requests_give_the_same_bytes(tmp_path: Path) -> None:
    requests = [request for name in LEARNING for request in read_requests([name])[:30]]
    for name in ("one", "two"):
        write_classifier(fit_classifier(requests), tmp_path / f"{name}.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_the_shipped_weights_were_fitted_on_the_committed_sets() -> None:
    card = json.loads(WEIGHTS.with_suffix(".json").read_text("utf-8"))
    assert card["sets"] == {name: digest(SETS / f"{name}.jsonl") for name in LEARNING}
    assert not set(JUDGING) & set(card["sets"])


def test_no_modality_is_taken_for_the_other_in_the_held_out_wordings_of_the_worlds() -> None:
    requests = world_requests("test", 24, held_out=True)
    told = [(request.relevant, decide(parse(request.body)).relevant.value) for request in requests]
    assert ("image", "text") not in told
    assert told.count(("text", "image")) <= 2
    assert sum(needed == given for needed, given in told) >= 0.7 * len(told)


def test_the_committed_table_has_every_candidate() -> None:
    table = Path(__file__).parents[2] / "bench" / "results" / "relevance.json"
    rows = json.loads(table.read_text("utf-8"))["rows"]
    assert {(row["candidate"], row["set"]) for row in rows} == {
        *(
            (candidate, "learning")
            for candidate in ("rules", "classifier", "limited", "default", "splitting")
        ),
        *((candidate, "judging") for candidate in ("classifier", "limited", "default", "splitting")),
    }
