"""How the splitter is fitted: its loss, its examples, and that the same requests give the same bytes."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bench.relevance.chain import Chain, Example, fit_chain
from bench.relevance.fit_splitting import examples_of
from bench.relevance.requests import LEARNING, SETS, LabelledRequest, digest, read_requests
from bench.relevance.variants import marked, variants
from modint_guard.chat.learnt_split import joined
from modint_guard.chat.ngrams import BUCKETS
from modint_guard.chat.request import by_rules
from modint_guard.chat.split_features import split_features
from modint_guard.chat.splitter import SPLITTER, context_tokens, write_splitter


def labelled(*messages: tuple[str, str], contexts: tuple[str, ...], placement: str) -> LabelledRequest:
    body = {"model": "m", "messages": [{"role": role, "content": text} for role, text in messages]}
    return LabelledRequest("x", "b", "photo", "en", body, "image", contexts, "What is it?", placement)


PLAIN = labelled(("user", "It is red. What is it?"), contexts=("It is red.",), placement="before")


def example(text: str, labels: str) -> Example:
    """labels: for each token 1 if it is context, else 0."""
    ruled = by_rules({"messages": [{"role": "user", "content": text}]})
    features = split_features(joined(ruled, ruled.texts))
    return Example(features, np.array([label == "1" for label in labels]), 1.0)


def test_the_loss_is_that_of_all_labellings_and_its_slope_is_right() -> None:
    chain = Chain([example("It is red. What?", "111100"), example("Why is it", "000")])
    draw = np.random.default_rng(0)
    weights, bias = draw.normal(0, 0.3, (BUCKETS, 3)).astype(np.float32), np.zeros(3, np.float32)
    being, crossing = chain.scores(weights, bias)

    def value(first: int, labels: tuple[bool, ...]) -> float:
        before = (False, *labels[:-1])
        return sum(
            being[first + i] * now
            + crossing[first + i, 0] * (now and not was)
            + crossing[first + i, 1] * (was and not now)
            for i, (was, now) in enumerate(zip(before, labels, strict=True))
        )

    total = 0.0
    for first, labels in ((0, (True,) * 4 + (False,) * 2), (6, (False,) * 3)):
        every = [value(first, each) for each in product([False, True], repeat=len(labels))]
        total += float(np.log(np.exp(every).sum())) - value(first, labels)
    decay = 0.5 * (np.array([0.25, 0.5, 0.5]) * weights**2).sum()
    loss, slope, _ = chain.loss(weights, bias)
    assert loss == pytest.approx(total + decay, rel=1e-5)
    for bucket, column in ((np.abs(slope[:, 0]).argmax(), 0), (np.abs(slope[:, 1]).argmax(), 1)):
        more, less = weights.copy(), weights.copy()
        more[bucket, column] += 0.05
        less[bucket, column] -= 0.05
        measured = (chain.loss(more, bias)[0] - chain.loss(less, bias)[0]) / 0.1
        assert slope[bucket, column] == pytest.approx(measured, rel=0.02)


def test_marks_are_those_of_the_labels_and_the_blanks_within_them() -> None:
    assert marked(PLAIN).marks == {(0, None): [True] * 10 + [False] * 12}


def test_variants_keep_the_question_and_lose_or_move_the_context() -> None:
    made = list(variants(PLAIN))
    assert made[0].body["messages"] == [{"role": "user", "content": "What is it?"}]
    assert not any(made[0].marks[0, None])
    assert [each.body for each in variants(PLAIN)] == [each.body for each in made]
    for each in made[1:]:
        texts = [
            (message["content"], each.marks[number, None])
            for number, message in enumerate(each.body["messages"])
            if isinstance(message["content"], str) and message["role"] != "assistant"
        ]
        told = "".join(c for text, marks in texts for c, mark in zip(text, marks, strict=True) if mark)
        assert told.lower().strip(".") in ("it is red", "")


def test_what_stands_inside_the_question_is_not_moved() -> None:
    inside = labelled(("user", "If it is red, What is it?"), contexts=("it is red",), placement="inside")
    assert all(sum(map(sum, each.marks.values())) == 9 for each in variants(inside))


def test_a_splitter_learns_what_it_is_shown() -> None:
    examples = [example("It is red. What is it?", "11110000"), example("It is blue. Who is it?", "11110000")]
    splitter = fit_chain(examples)
    assert context_tokens(examples[0].features, splitter).tolist() == [True] * 4 + [False] * 4


def test_the_same_requests_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_splitter(fit_chain(examples_of(read_requests()[:12])), tmp_path / f"{name}.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_the_shipped_splitter_was_fitted_on_the_committed_sets() -> None:
    card = json.loads(SPLITTER.with_suffix(".json").read_text("utf-8"))
    assert card["sets"] == {name: digest(SETS / f"{name}.jsonl") for name in LEARNING}
