"""Where attention is told to look in look-ups by name, and the loss that tells it."""

import math
import random
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modint_training.data.collate import encode
from modint_training.method.labels import IGNORED
from modint_training.tinyworld.guide import OWNER, PERSON, VALUE, links
from modint_training.tinyworld.guided import GuidedBatch, GuidedPart, guided_loss, row_losses
from modint_training.tinyworld.pretrain import look_up_batches
from modint_training.tinyworld.recall import RecallRow, encode_recall, look_up_row
from modint_training.tinyworld.tasks import TASKS, build
from tests.training.small import pretrain_recipe, small_model


def test_a_value_looks_at_its_owner_and_an_answer_at_who_is_asked_and_at_the_value(processor: Any) -> None:
    row = RecallRow("Ann has a red star. Ben has a blue square.", [("shape of Ben", "square")])
    encoded = encode_recall(row, processor)
    tokens = processor.tokenizer.convert_ids_to_tokens(encoded.ids)
    answers = encoded.ids.index(next(label for label in encoded.labels if label != IGNORED)) - 1
    found = [
        (link.layer, tokens[link.query], tokens[link.key])
        for link in links(encoded.ids, [(answers, "square")], processor.tokenizer)
    ]
    assert found == [
        (OWNER, "Ġred", "Ann"),
        (OWNER, "Ġstar", "Ann"),
        (OWNER, "Ġblue", "ĠBen"),
        (OWNER, "Ġsquare", "ĠBen"),
        (PERSON, ":", "ĠBen"),
        (VALUE, ":", "Ġsquare"),
    ]


@pytest.mark.parametrize("name", ["lookup_colour", "lookup_shape"])
@pytest.mark.parametrize("form", ["word", "letter"])
def test_a_question_as_the_suite_asks_it_has_links_too(processor: Any, name: str, form: Any) -> None:
    for seed in range(20):
        item = build(TASKS[name], f"item-{seed}", random.Random(seed), "train", form=form)
        encoded = encode(item, processor)
        last = len(encoded.ids) - encoded.answer_length - 1
        tokens = processor.tokenizer.convert_ids_to_tokens(encoded.ids)
        *owners, asked, found = links(encoded.ids, [(last, item.answer)], processor.tokenizer)
        assert len(owners) == 6 and {link.layer for link in owners} == {OWNER}
        assert (asked.layer, asked.query, found.layer, found.query) == (PERSON, last, VALUE, last)
        assert tokens[found.key] == f"Ġ{item.answer}"
        assert tokens[asked.key].strip("Ġ") in item.question
        assert found.key in [link.query for link in owners if tokens[link.key].strip("Ġ") in item.question]


def test_what_says_nothing_of_anybody_has_no_links(processor: Any) -> None:
    ids = processor.tokenizer("What is 3 plus 4? Ann thinks.").input_ids
    assert links(ids, [], processor.tokenizer) == []


def test_rows_about_people_ask_for_all_that_they_have() -> None:
    seen = set()
    for seed in range(60):
        row = look_up_row(random.Random(seed))
        said = re.findall(r"(\w+) has a (\w+) (\w+)\.", row.head)
        assert sorted(wanted for _, wanted in row.queries) == sorted(
            value for _, *values in said for value in values
        )
        for named, wanted in row.queries:
            (owned,) = [values for who, *values in said if who in named]
            assert wanted in owned
        seen.add((len(said), row.queries[0][0].split()[0] in ("colour", "shape")))
    assert seen == {(people, briefly) for people in (2, 3, 4) for briefly in (True, False)}


class Stub(torch.nn.Module):
    """Pays what it is told to pay, at two positions of two layers and two heads."""

    def forward(self, **inputs: Any) -> Any:
        assert set(inputs) == {"input_ids", "use_cache", "output_attentions"}
        paid = torch.zeros(2, 1, 2, 3, 3)  # layers, rows, heads
        paid[0, 0, 0, 1, 0] = 0.5
        paid[1, 0, 0, 2, 1] = 0.25
        paid[:, :, 1] = 1.0  # the other head is not looked at
        return SimpleNamespace(logits=torch.zeros(1, 3, 8), attentions=tuple(paid))  # any of 8 is as likely


def test_the_guided_loss_adds_what_attention_did_not_pay() -> None:
    part = GuidedPart(
        inputs={"input_ids": torch.zeros(1, 3, dtype=torch.long)},
        labels=torch.zeros(1, 3, dtype=torch.long),
        links=torch.tensor([[0, 0, 1, 0], [0, 1, 2, 1]]),
    )
    expected = math.log(8) + 0.3 * (math.log(2) + math.log(4)) / 2
    assert guided_loss(Stub(), GuidedBatch((part,)), 0.3).item() == pytest.approx(expected)
    nothing = replace(part, links=torch.empty(0, 4, dtype=torch.long))
    assert guided_loss(Stub(), GuidedBatch((nothing,)), 0.3).item() == pytest.approx(math.log(8))


def test_a_row_counts_once_whatever_the_number_of_its_answers() -> None:
    logits = torch.zeros(2, 4, 4)
    logits[0, 0, 1] = 100.0  # the first row is sure of its one answer, rightly
    labels = torch.tensor([[-100, 1, -100, -100], [-100, 0, 1, 2]])
    assert row_losses(logits, labels).tolist() == pytest.approx([0.0, math.log(4)])


def test_links_follow_their_rows_through_sorting_and_padding(processor: Any) -> None:
    only = ("language_pictures=0", "language_drill=0", "language_look_up=1", "micro_batches=3")
    parts = look_up_batches(pretrain_recipe(*only), processor)(0)[0].parts
    tokens = processor.tokenizer.convert_ids_to_tokens
    for part in parts:
        rows = {row: tokens(ids.tolist()) for row, ids in enumerate(part.inputs["input_ids"])}
        for row, layer, query, key in part.links.tolist():
            said = rows[row]
            if layer == OWNER:
                assert said[key + 1 : key + 3] == ["Ġhas", "Ġa"] and query - key in (3, 4)
            else:
                assert query > key and part.labels[row, query + 1] != IGNORED
    asked = sum(int((part.labels != IGNORED).any(dim=1).sum()) for part in parts)
    assert asked == 8 == len({(n, row) for n, part in enumerate(parts) for row in part.links[:, 0].tolist()})


def test_a_model_takes_a_guided_step(processor: Any) -> None:
    model = small_model(processor, layers=3)
    model.set_attn_implementation("eager")
    (batch,) = look_up_batches(pretrain_recipe("language_look_up=1"), processor)(0)
    guided_loss(model, batch, 0.3).backward()
    first = model.model.language_model.layers[OWNER].self_attn.q_proj.weight.grad
    assert first is not None and first.abs().sum() > 0
