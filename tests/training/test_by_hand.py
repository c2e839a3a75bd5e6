"""The step's loss on paper: a language model whose next word depends on the last one alone."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modint_training.data.batches import twin_batches
from modint_training.data.collate import encode
from modint_training.method.batch import Batch, token_counts
from modint_training.method.families import family_of
from modint_training.method.labels import IGNORED, UNKNOWN
from modint_training.method.masks import predicting_mask
from modint_training.method.passes import Outputs
from modint_training.method.step import (
    LossWeights,
    StepMeter,
    denominators,
    log_line,
    step_loss,
    twin_inconsistency,
)
from modint_training.tinyworld import suite
from modint_training.tinyworld.source import training_source
from tests.training.small import lora_recipe, small_model

# What follows each of three words: the first of two answers with a probability of 1/4, 1/2 and 1/8.
QUARTER, HALF, EIGHTH = range(3)
NEXT = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [0.0, math.log(7)]])
BY_HAND = replace(family_of("llava"), decoder="decoder", head="head")
KL_QUARTER_HALF = math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4
KL_EIGHTH_HALF = math.log(1 / 4) / 8 + 7 * math.log(7 / 4) / 8


class Same(nn.Module):
    """A decoder that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, inputs_embeds: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=inputs_embeds)


class Lookup(nn.Module):
    """A word's embedding is the logits of the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(NEXT.clone(), freeze=False)
        self.decoder, self.head = Same(), nn.Identity()

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        hidden = self.decoder(inputs_embeds=self.embed(input_ids)).last_hidden_state
        return SimpleNamespace(logits=self.head(hidden))


def batch_of(*rows: tuple[int, int, int]) -> Batch:
    """Rows of one word and its answer's label: (word, label, the row of its clean version or -1)."""
    labels = torch.tensor([[IGNORED, label] for _, label, _ in rows])
    clean_row = torch.tensor([clean for _, _, clean in rows])
    untouched = torch.zeros_like(labels, dtype=torch.bool)
    return Batch(
        inputs={"input_ids": torch.tensor([[word, max(label, 0)] for word, label, _ in rows])},
        labels=labels,
        clean_row=clean_row,
        attackable=untouched,
        row_seeds=torch.zeros(len(rows), dtype=torch.long),
        counts=token_counts(labels, clean_row, untouched),
    )


def measured(batch: Batch, weight: float = 1.0) -> tuple[dict[str, float], Tensor]:
    """The parts of the loss, and its gradient with respect to each word's logits."""
    model, meter = Lookup(), StepMeter()
    weights = LossWeights(task=1.0, adversarial=1.0, consistency=weight, kind="kl")
    step_loss(BY_HAND, weights, None, meter)(model, batch).backward()
    gradient = model.embed.weight.grad
    assert gradient is not None
    return log_line(meter.take()), gradient


LABELLED = ((QUARTER, 1, -1), (HALF, 1, 0))  # clean, then its twin
UNLABELLED = ((EIGHTH, UNKNOWN, -1), (HALF, UNKNOWN, 0))


def test_a_pair_with_a_label_pays_for_its_answers_and_for_disagreeing() -> None:
    found, _ = measured(batch_of(*LABELLED))
    assert found["sft"] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)
    assert found["cons"] == pytest.approx(KL_QUARTER_HALF, rel=1e-6)


def test_a_pair_without_a_label_pays_for_disagreeing_alone() -> None:
    found, gradient = measured(batch_of(*UNLABELLED))
    assert found["sft"] == found["adv"] == 0
    assert found["loss"] == found["cons"] == pytest.approx(KL_EIGHTH_HALF, rel=1e-6)
    # The twin's side alone is pulled, to the clean one: q - p of its two answers.
    assert gradient[HALF].tolist() == pytest.approx([1 / 2 - 1 / 8, 1 / 2 - 7 / 8], abs=1e-6)
    assert not gradient[EIGHTH].any()


def test_both_kinds_in_one_batch_count_each_where_they_are_known() -> None:
    second = [(word, label, clean if clean < 0 else 2) for word, label, clean in UNLABELLED]
    batch = batch_of(*LABELLED, *second)
    assert batch.counts.tolist() == [2, 0, 2]  # known answers; none attacked; twins' tokens
    found, _ = measured(batch, weight=0.5)
    assert found["sft"] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)
    assert found["cons"] == pytest.approx((KL_QUARTER_HALF + KL_EIGHTH_HALF) / 2, rel=1e-6)
    assert found["loss"] == pytest.approx(found["sft"] + 0.5 * found["cons"], rel=1e-6)


def test_a_batch_in_which_every_label_is_masked_moves_nothing() -> None:
    found, gradient = measured(batch_of((QUARTER, UNKNOWN, -1), (HALF, IGNORED, -1)))
    assert found["loss"] == 0
    assert not gradient.any()


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("variants", [1, 2, 3])
def test_lambda_means_the_same_for_any_answer_length_and_any_number_of_variants(
    length: int, variants: int
) -> None:
    rows = torch.tensor([QUARTER] + [HALF] * variants)
    labels = torch.full((len(rows), length + 1), 1)
    labels[:, 0] = IGNORED
    clean_row = torch.tensor([-1] + [0] * variants)
    untouched = torch.zeros_like(labels, dtype=torch.bool)
    logits = NEXT[rows].repeat_interleave(length, 0)
    weights = LossWeights(task=1.0, adversarial=0.0, consistency=1.0, kind="kl")
    total = twin_inconsistency(Outputs(logits, logits), clean_row, predicting_mask(labels), weights)
    mean = total / denominators(token_counts(labels, clean_row, untouched))[2]
    assert mean.item() == pytest.approx(KL_QUARTER_HALF, rel=1e-6)


# From an item without a label to such a row


def test_a_row_without_a_label_is_read_where_its_answer_would_begin(processor: Any) -> None:
    item = suite.items("vqa", "train", 1)[0]
    labelled, without = encode(item, processor), encode(item.replace(answer=""), processor)
    asked = len(labelled.ids) - labelled.answer_length
    assert without.ids == [*labelled.ids[:asked], processor.tokenizer.eos_token_id]
    assert without.labels == [IGNORED] * asked + [UNKNOWN]
    where = predicting_mask(torch.tensor([without.labels]))
    assert where.nonzero().tolist() == [[0, asked - 1]]


def test_rows_without_a_label_are_not_attacked_and_still_agree(processor: Any) -> None:
    attack = (
        "attack={kind: pgd, step: normalised, epsilon: 0.2, relative: true, alpha: 0.2, steps: 1, mask: span"
    )
    recipe = lora_recipe("tinyworld-base", attack + ", weight: 1}", "quotas=[1, 1, 0]", "batch=4")
    draw = training_source(recipe)
    source = lambda slot: draw(slot).replace(answer="") if slot.index % 2 else draw(slot)  # noqa: E731
    (batch,) = twin_batches(recipe, processor, source)(0)
    known = (batch.labels != UNKNOWN).all(-1)
    assert known.tolist() == [True, True, False, False] * 2  # each beside its twin
    attacked = batch.attackable.any(-1)
    assert attacked.any() and not (attacked & ~known).any()
    meter = StepMeter()
    model = small_model(processor)
    weights = LossWeights(task=1.0, adversarial=1.0, consistency=1.0, kind="js")
    assert step_loss(family_of("llava"), weights, None, meter)(model, batch).isfinite()
    assert log_line(meter.take())["cons"] > 0
