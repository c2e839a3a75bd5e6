"""Labelled requests, how the classifier of relevance is fitted on them, and how it is measured."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.relevance.fit import fit_classifier, limits_of
from bench.relevance.measure import OVERLAP, overlap, relevance_rows
from bench.relevance.requests import (
    JUDGING,
    LEARNING,
    SETS,
    LabelledRequest,
    as_labelled,
    digest,
    labelled_letters,
    letters_in,
    read_requests,
)
from bench.relevance.worlds import world_requests
from modint_guard import Guard
from modint_guard.chat.linear import WEIGHTS, write_classifier
from modint_guard.chat.relevance import decide
from modint_guard.chat.request import parse
from modint_guard.data.item import Family
from modint_guard.evaluation.runner import request_for
from modint_guard.types import Span
from modint_training.tinyworld import suite as tinyworld

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


def test_the_requests_to_learn_from_keep_their_format_and_none_stands_in_two_sets() -> None:
    requests = read_requests()  # which refuses what does not; those for judging are read by no test
    assert {request.author for request in requests} == set(LEARNING)
    assert len(requests) == 6330


ROW = {
    "id": "x-1",
    "domain": "photo",
    "language": "en",
    "messages": [{"role": "user", "content": "It is red. What is it?"}],
    "relevant": "image",
    "contexts": ["It is red."],
    "question": "What is it?",
    "placement": "before",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"relevant": "picture"}, "x-1: relevant is none of image, text, both, neither: picture"),
        ({"placement": "above"}, "x-1: no such placement: above"),
        ({"placement": "none"}, "x-1: contexts: 1, placement: none"),
        ({"contexts": ["It is blue."]}, "x-1: the context is in no text: 'It is blue.'"),
        ({"question": "Who is it?"}, "x-1: the question is in no text: 'Who is it?'"),
    ],
)
def test_a_request_whose_labels_cannot_be_so_is_refused(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({**ROW, **changes}) + "\n", "utf-8")
    with pytest.raises(ValueError, match=f"^x.jsonl, line 1: {re.escape(said)}$"):
        read_requests(["x"], tmp_path)


@pytest.mark.parametrize(
    "changes", [{"id": "y-1"}, {"messages": [{"role": "user", "content": "So: It is red. What is it?"}]}]
)
def test_a_request_that_stands_in_another_set_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(ROW) + "\n", "utf-8")
    (tmp_path / "y.jsonl").write_text(json.dumps({**ROW, **changes}) + "\n", "utf-8")
    with pytest.raises(ValueError, match=r"^y.jsonl, line 1: .-1: x-1 is the same$"):
        read_requests(["x", "y"], tmp_path)


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
    plans = [Guard().plan(request.body) for request in requests]
    told = [(request.relevant, plan.judged_as) for request, plan in zip(requests, plans, strict=True)]
    assert ("image", "text") not in told and ("text", "image") not in told
    assert sum(needed == given for needed, given in told) >= 0.8 * len(told)


OTHER_INPUT: dict[Family, str] = {
    "image-heavy": "true_description",
    "text-heavy": "agreeing_image",
    "vqa": "clean",
}


@pytest.mark.parametrize("held_out", [False, True])
def test_the_toys_families_are_told_as_the_rules_told_them_that_were_written_for_them(
    held_out: bool,
) -> None:
    """The old lexical rules: no question of one modality taken for the other, eight in ten told rightly."""
    told: dict[str, list[str]] = {}
    for family, other in OTHER_INPUT.items():
        items = tinyworld.items(family, "test", 80, seed=0, held_out=held_out)
        bodies = [request_for(tinyworld.perturbed(item, other, seed=0), "any") for item in items]
        bodies = [{key: value for key, value in body.items() if key != "modint"} for body in bodies]
        told[family] = [decide(parse(body, decode=False)).relevant.value for body in bodies]
    image, text, both = told["image-heavy"], told["text-heavy"], told["vqa"]
    assert image.count("image") >= 64 and "text" not in image
    assert text.count("text") >= 64 and "image" not in text
    assert "text" not in both


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
