"""The benchmark of a training step: its count by hand, and that both implementations compute one loss."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from bench.step_cost.operations import (
    WeightCounts,
    Work,
    minimal_work,
    multiply_adds,
    our_work,
    straightforward_work,
    weight_counts,
)
from bench.step_cost.stepping import tune_recipe
from bench.step_cost.straightforward import padded, perturbed_or_alone, straightforward_loss
from bench.step_cost.training import METHODS, RECIPE, main
from modint_training.method.batch import Batch
from modint_training.method.families import family_of
from modint_training.method.step import attack_of, twin_loss, weights_of
from modint_training.models.loading import lora_config
from tests.training.small import lora_recipe, save_small_base, small_model, tinyworld_batches
from tests.training.small_families import lively

LLAVA = family_of("llava")
IMAGE = 9  # the placeholder in the batch below


def batch() -> Batch:
    """An image-heavy row of 4 tokens and its twin of 6, and a vqa row of 4; answers of 1, 1 and 2 tokens; the
    first two rows show one picture."""
    lengths = torch.tensor([4, 6, 4])
    labels = torch.full((3, 6), -100)
    labels[0, 3], labels[1, 5], labels[2, 2:4] = 7, 7, 8
    ids = torch.ones(3, 6, dtype=torch.long)
    ids[:, 1] = IMAGE
    attackable = torch.zeros(3, 6, dtype=torch.bool)
    attackable[1, 2:4] = True
    return Batch(
        inputs={
            "input_ids": ids,
            "attention_mask": (torch.arange(6) < lengths.unsqueeze(1)).long(),
            "pixel_values": torch.tensor([1.0, 1.0, 2.0]).view(3, 1, 1, 1),
        },
        labels=labels,
        clean_row=torch.tensor([-1, 0, -1]),
        attackable=attackable,
        row_seeds=torch.zeros(3, dtype=torch.long),
        counts=torch.tensor([4.0, 1.0, 2.0]),
    )


# What is counted


def test_a_position_is_counted_forward_and_back_and_once_more_for_what_is_trained() -> None:
    weights = WeightCounts(decoder=100, adapter=10, head=20, tower=50)
    assert multiply_adds(Work(trained=3, attacked=0, read=0, seen=0), weights) == 3 * (100 + 10) * 2 + 3 * 10
    assert multiply_adds(Work(trained=0, attacked=4, read=0, seen=0), weights) == 4 * (100 + 10) * 2
    assert multiply_adds(Work(trained=0, attacked=0, read=5, seen=0), weights) == 5 * 20 * 2
    assert (
        multiply_adds(Work(trained=0, attacked=0, read=0, seen=6), weights) == 6 * 50
    )  # frozen: not gone back


def test_what_is_needed_is_tokens_and_distinct_pictures() -> None:
    # 4 + 6 + 4 tokens, and the twin's 6 again for the pass that counts; 6 more a climb. 4 answer tokens, and
    # the twin's again in each of its passes. Two pictures of 5 positions.
    assert minimal_work(batch(), 0, 5) == Work(trained=20, attacked=0, read=5, seen=10)
    assert minimal_work(batch(), 2, 5) == Work(trained=20, attacked=12, read=7, seen=10)


def test_ours_adds_the_padding_within_a_group_and_pictures_shown_twice() -> None:
    # Rows of 6, 4, 4: cutting off the two short ones saves 4 of 18 positions, more than an eighth.
    assert our_work(batch(), 1, 5) == Work(trained=20, attacked=6, read=6, seen=15)
    longer = batch()
    longer.inputs["attention_mask"][:, :5] = 1  # rows of 6, 5, 5: 2 of 18 are less than an eighth
    assert our_work(longer, 1, 5) == Work(trained=18 + 6, attacked=6, read=6, seen=15)


def test_the_straightforward_way_attacks_rows_without_a_twin_and_reads_and_sees_everything_again() -> None:
    long = padded(batch(), 8, 0)
    # 3 rows of 8, then twin and vqa row again: 16 positions, and 16 more a climb. Pictures: 3, and 2 in each
    # pass.
    assert straightforward_work(long, 1, 5, IMAGE) == Work(
        trained=40, attacked=16, read=56, seen=5 * (3 + 2 + 2)
    )


def test_without_twins_there_is_one_pass() -> None:
    alone, untouched = torch.tensor([-1, -1, -1]), torch.zeros(3, 6).bool()
    plain = replace(batch(), clean_row=alone, attackable=untouched)
    assert minimal_work(plain, 0, 5) == Work(trained=14, attacked=0, read=4, seen=10)


def test_weights_are_counted_by_part(processor: Any) -> None:
    model = get_peft_model(small_model(processor), lora_config(lora_recipe("x"), "llava"))
    square, vocabulary = 32 * 32, len(processor.tokenizer)
    assert weight_counts(model, LLAVA) == WeightCounts(
        decoder=7 * square,  # q, k, v, o, gate, up, down
        adapter=7 * 2 * 2 * 32,  # A and B of rank 2
        head=vocabulary * 32,
        tower=8 * 8 * 3 * 32
        + 6 * square
        + 2 * square,  # patches; q, k, v, out, two of the MLP; the connector's
    )


# The straightforward implementation


def test_rows_that_need_both_modalities_are_attacked_the_straightforward_way() -> None:
    assert perturbed_or_alone(torch.tensor([-1, 0, -1, -1, 3])).tolist() == [1, 2, 4]


def test_padding_changes_nothing_but_the_length() -> None:
    long = padded(batch(), 8, 0)
    assert {tuple(rows.shape) for rows in (long.inputs["input_ids"], long.labels, long.attackable)} == {
        (3, 8)
    }
    assert torch.equal(long.labels[:, :6], batch().labels) and (long.labels[:, 6:] == -100).all()
    assert long.inputs["attention_mask"].sum() == batch().inputs["attention_mask"].sum()
    with pytest.raises(ValueError, match="rows of 6 tokens do not fit into 5"):
        padded(batch(), 5, 0)


@pytest.mark.parametrize("overrides", [(), ("attack.steps=2", "consistency=kl"), ("consistency=none",)])
def test_both_implementations_compute_the_same_loss_and_gradient(
    overrides: tuple[str, ...], processor: Any
) -> None:
    recipe = tune_recipe(RECIPE, ("batch=8", *overrides))
    (whole,) = tinyworld_batches(recipe, processor)(0)
    model = lively(small_model(processor)).eval()
    attack = attack_of(recipe)
    assert attack is not None
    losses = (twin_loss(recipe), straightforward_loss(LLAVA, weights_of(recipe), attack))
    found = []
    for loss, made in zip(losses, (whole, padded(whole, 100, processor.tokenizer.pad_token_id)), strict=True):
        model.zero_grad()
        value = loss(model, made)
        value.backward()
        weight = model.model.language_model.layers[0].mlp.down_proj.weight
        found.append((value.item(), weight.grad.clone()))
    (one, ours_moved), (other, theirs_moved) = found
    assert other == pytest.approx(one, rel=1e-5)
    assert (ours_moved - theirs_moved).abs().max() <= 1e-4 * ours_moved.abs().max()


# The whole benchmark, on a small base


def test_each_method_has_a_row_beside_plain_sft(processor: Any, tmp_path: Path) -> None:
    base, file = save_small_base(processor, tmp_path / "base"), tmp_path / "bench.json"
    main(
        [
            f"--base={base}",
            f"--output={file}",
            "--batch=8",
            "--rounds=2",
            "--warm-up=1",
            "--threads=1",
            "--no-memory",
        ]
    )
    rows = {row["method"]: row for row in json.loads(file.read_text("utf-8"))["rows"]}
    assert list(rows) == list(METHODS)
    plain = rows["sft"]
    assert plain["times_sft"] == plain["gmac_times_sft"] == plain["bound_times_sft"] == 1
    assert [row["rows"] for row in rows.values()] == [8, 12, 12, 12, 12, 12, 12]
    counted = [row["gmac"] for row in rows.values()]
    assert counted[0] < counted[1] < counted[2] == counted[4] < counted[3] == counted[5]
    assert counted[4] < counted[6]
    assert all(row["gmac_needed"] <= row["gmac"] and row["step_s"] > 0 for row in rows.values())
