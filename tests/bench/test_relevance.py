"""Labelled requests, and how what is told of them is measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.relevance.measure import OVERLAP, Told, classifier_rows, overlap, rules_rows
from bench.relevance.requests import (
    JUDGING,
    LABELS,
    LEARNING,
    PLACEMENTS,
    SETS,
    LabelledRequest,
    labelled_letters,
    letters_in,
    read_requests,
    texts_of,
)
from bench.relevance.worlds import world_requests
from modint_guard.chat.linear import shipped_reader
from modint_guard.chat.relevance import decide, label_probabilities
from modint_guard.chat.request import parse
from modint_guard.types import Span

NONE: frozenset[tuple[int, int | None, int]] = frozenset()
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
    for request in requests:
        texts = [text for _, _, text in texts_of(request.body)]
        assert any(request.question in text for text in texts), request.id


def test_no_request_stands_in_two_sets_and_all_are_small() -> None:
    requests = read_requests([*LEARNING, *JUDGING])
    assert len({request.id for request in requests}) == len(requests)
    texts = [tuple(text for _, _, text in texts_of(request.body)) for request in requests]
    assert len(set(texts)) == len(texts)
    assert sum(file.stat().st_size for file in SETS.iterdir()) <= 2_000_000


def test_the_letters_of_the_context_are_those_of_the_substring() -> None:
    assert labelled_letters(PLAIN) == {(0, None, i) for i in (0, 1, 3, 4, 6, 7, 8, 9)}
    assert letters_in(PLAIN.body, [Span(0, None, 10, 15)]) == {(0, None, i) for i in (11, 12, 13, 14)}


def test_overlap_is_twice_the_common_letters_over_all() -> None:
    letters = labelled_letters(PLAIN)
    assert overlap(PLAIN, Told("image", None, frozenset(letters))) == 1.0
    more = frozenset(letters | {(0, None, i) for i in range(11, 15)})
    assert overlap(PLAIN, Told("image", None, more)) == pytest.approx(2 * 8 / 20)
    assert overlap(PLAIN, Told("image", None, NONE)) == 0.0 < OVERLAP
    assert overlap(replace(PLAIN, contexts=()), Told("image", None, NONE)) == 1.0


def test_precision_recall_and_f1_count_what_was_left_unknown_as_missed() -> None:
    chat = parse(PLAIN.body)
    requests = [replace(PLAIN, relevant=label) for label in ("image", "image", "text", "both")]
    by_label = [
        {"image": 0.9, "text": 0.1, "both": 0.0, "neither": 0.0},
        {"image": 0.6, "text": 0.2, "both": 0.1, "neither": 0.1},
        {"image": 0.95, "text": 0.05, "both": 0.0, "neither": 0.0},
        {"image": 0.1, "text": 0.1, "both": 0.8, "neither": 0.0},
    ]
    rows = {
        (row["candidate"], row["measure"]): row
        for row in classifier_rows(requests, [chat] * 4, by_label, "learning")
    }
    # Likeliest: image, image, image, both. By default the second stays unknown.
    assert rows["classifier", "precision: image"]["value"] == pytest.approx(2 / 3)
    assert rows["classifier", "recall: image"]["value"] == 1.0
    assert rows["classifier", "macro_f1"]["value"] == pytest.approx((4 / 5 + 0 + 1) / 3)
    assert rows["default", "precision: image"]["value"] == 0.5
    assert rows["default", "recall: image"]["value"] == 0.5
    assert rows["default", "unknown"]["value"] == 0.25
    assert rows["default", "macro_f1"]["value"] == pytest.approx((2 / 4 + 0 + 1) / 3)
    both = rows["default", "recall: both"]
    # Clopper-Pearson for 1 of 1: the lower end is .025, the upper 1.
    assert (both["value"], both["ci_low"], both["ci_high"], both["n"]) == (1.0, pytest.approx(0.025), 1.0, 1)


def test_the_rules_are_measured_by_what_they_said_when_they_were_there() -> None:
    requests = read_requests(["b"])
    rows = {row["measure"]: row["value"] for row in rules_rows(requests, "learning")}
    assert rows["unknown"] > 0.5
    assert rows["context: part"] > 0.9 > 0.1 > rows["context: system"]


def test_the_held_out_wordings_of_the_worlds_are_read_rightly() -> None:
    requests = world_requests("test", 24, held_out=True)
    chats = [parse(request.body) for request in requests]
    model = shipped_reader().relevance
    by_label = [label_probabilities(chat, model) for chat in chats]
    right = [
        row[request.relevant] == max(row.values()) for row, request in zip(by_label, requests, strict=True)
    ]
    assert sum(right) >= 0.9 * len(right)
    told = [(request.relevant, decide(chat).relevant) for request, chat in zip(requests, chats, strict=True)]
    assert ("image", "text") not in told and ("text", "image") not in told
    recovered = [
        overlap(request, Told("", None, frozenset(letters_in(chat.body, chat.context_spans)))) >= OVERLAP
        for request, chat in zip(requests, chats, strict=True)
    ]
    assert sum(recovered) >= 0.9 * len(recovered)


def test_the_committed_table_has_every_candidate_on_both_sets() -> None:
    table = Path(__file__).parents[2] / "bench" / "results" / "relevance.json"
    rows = json.loads(table.read_text("utf-8"))["rows"]
    assert {(row["candidate"], row["set"]) for row in rows} == {
        (candidate, part)
        for candidate in ("rules", "classifier", "default")
        for part in ("learning", "judging")
    }
