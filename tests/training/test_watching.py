"""What is measured while a model trains: the loss of true answers, accuracy, and flips."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modint_guard.data import first_of_each, read_data, write_items
from modint_guard.data.item import FAMILIES, Item, reply_for
from modint_guard.data.perturb import perturb
from modint_training.data.collate import Encoded, collate, encode
from modint_training.loop.predict import right_first_words
from modint_training.loop.validation import (
    MAX_ROWS,
    MAX_TOKENS,
    ValidationSet,
    accuracy_figures,
    batches,
    measure,
    validation_figures,
    validation_sets,
)
from modint_training.method.losses import cross_entropies
from modint_training.method.masks import answer_tokens, predicting_mask
from modint_training.models.local import completion
from modint_training.tinyworld import source, suite
from tests.training.small import small_model
from tests.training.small_families import FAMILIES as MODELS
from tests.training.small_families import lively, small_family
from tests.training.test_predict import one_word_model

ITEMS = [item for family in FAMILIES for item in suite.items(family, "validation", 4)]


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    return lively(small_model(processor)).train()


def test_the_loss_is_that_of_the_true_answers_a_token(model: Any, processor: Any) -> None:
    rows = collate([encode(item, processor) for item in ITEMS], processor)
    with torch.no_grad():
        logits = model.eval()(**rows.inputs, use_cache=False).logits
    losses = cross_entropies(logits[predicting_mask(rows.labels)], answer_tokens(rows.labels))
    expected = losses.mean().item()
    figures = validation_figures([ValidationSet("all", ITEMS, "all")], processor)(model.train(), 1)
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    assert model.training


@pytest.mark.parametrize("name", MODELS)
def test_one_word_answers_are_judged_as_tables_judge_them(name: str, processor: Any) -> None:
    net, own = small_family(name, processor)
    assert [one.right for one in measure(net, own, ITEMS)] == right_first_words(net, own, ITEMS)


def test_a_longer_answer_is_right_where_all_of_it_is_said(model: Any, processor: Any) -> None:
    asked = Item("a", "vqa", "", "free", "What is it?", image=ITEMS[0].image)
    body = {"messages": [{"role": "user", "content": asked.question}], "max_tokens": 3}
    blind = asked.replace(image=None)
    said = completion(model, processor, body)["choices"][0]["message"]["content"]
    ids = processor.tokenizer(said, add_special_tokens=False).input_ids
    assert len(ids) == 3
    other = processor.tokenizer.decode([*ids[:2], ids[2] + 1])
    assert [one.right for one in measure(model, processor, [blind.replace(answer=said)])] == [True]
    assert [one.right for one in measure(model, processor, [blind.replace(answer=other)])] == [False]


def test_an_item_without_a_label_is_read_and_never_right(model: Any, processor: Any) -> None:
    item = ITEMS[0]
    (seen,), (labelled,) = (measure(model, processor, [one]) for one in (item.replace(answer=""), item))
    assert seen.first == labelled.first
    assert (seen.right, seen.loss, seen.tokens) == (False, 0.0, 0)


def test_accuracy_and_flips_of_a_model_that_always_says_b(processor: Any) -> None:
    items = suite.items("image-heavy", "validation", 24)
    lied = [perturb(item, "misleading_description") for item in items]
    watched = [ValidationSet("i/clean", items, "i/clean"), ValidationSet("i/lied", lied, "i/clean")]
    figures = validation_figures(watched, processor)(one_word_model(processor, "B"), 1)
    share = sum(reply_for(item, item.answer) == "B" for item in items) / 24
    assert 0 < share < 1
    assert (figures["i/clean"], figures["i/lied"], figures["i/lied/flips"]) == (share, share, 0.0)
    accuracies = accuracy_figures(watched, processor)(one_word_model(processor, "B"), 1)
    assert accuracies == {"i/clean": share, "i/lied": share}


def test_a_flip_is_another_first_token_than_in_the_clean_condition(model: Any, processor: Any) -> None:
    items = suite.items("image-heavy", "validation", 6)
    lied = [perturb(item, "misleading_description") for item in items]
    clean, moved = measure(model, processor, items), measure(model, processor, lied)
    expected = sum(one.first != other.first for one, other in zip(clean, moved, strict=True)) / 6
    watched = [ValidationSet("i/clean", items, "i/clean"), ValidationSet("i/lied", lied, "i/clean")]
    assert validation_figures(watched, processor)(model, 1)["i/lied/flips"] == expected > 0


def test_every_perturbed_condition_has_a_clean_one() -> None:
    watched = source.validation_sets(2)
    names = [each.name for each in watched]
    assert {each.clean for each in watched} <= set(names)
    for each in watched:
        (clean,) = (other for other in watched if other.name == each.clean)
        assert [item.id for item in each.items] == [item.id for item in clean.items]


def test_ones_own_examples_are_watched_by_family(tmp_path: Path) -> None:
    items = [item for family in FAMILIES for item in suite.items(family, "train", 4)]
    write_items([*items, items[0].replace(id="u", answer="")], tmp_path)
    data = read_data(tmp_path)
    assert [item.family for item in first_of_each(data, 2)] == [
        family for family in FAMILIES for _ in range(2)
    ]
    watched = validation_sets(data, 3, ("unrelated_facts", "noise"))
    assert {each.name: (len(each.items), each.clean) for each in watched} == {
        "image-heavy/clean": (3, "image-heavy/clean"),
        "image-heavy/unrelated_facts": (3, "image-heavy/clean"),
        "text-heavy/clean": (3, "text-heavy/clean"),
        "text-heavy/noise": (3, "text-heavy/clean"),
        "vqa/clean": (3, "vqa/clean"),
    }
    assert all(item.image is None for item in watched[2].items)


def test_nothing_watched_gives_no_figures(model: Any, processor: Any) -> None:
    assert validation_figures([], processor)(model, 1) == {}


def test_a_batch_holds_rows_of_like_length_up_to_a_limit() -> None:
    rows = [Encoded([0] * length, []) for length in (MAX_TOKENS // 2, 1, MAX_TOKENS // 2, MAX_TOKENS, 1)]
    assert list(batches(rows)) == [[1, 4], [0, 2], [3]]
    assert [len(chosen) for chosen in batches([Encoded([0], [])] * (MAX_ROWS + 1))] == [MAX_ROWS, 1]
    assert list(batches([])) == []
