"""A batch goes through the decoder in groups of rows of similar length: the same numbers, less padding."""

from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from modint_training.data.collate import collate, encode
from modint_training.method.families import family_of
from modint_training.method.masks import predicting_mask
from modint_training.method.passes import DecoderInputs, by_length, decoder_pass, row_groups, whole_pass
from modint_training.tinyworld import suite
from tests.training.small import small_model
from tests.training.small_families import lively

LLAVA = family_of("llava")


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([9, 9, 3], [[0, 1], [2]]),  # the third row's padding is 6 of 27 positions
        ([9, 9, 8], [[0, 1, 2]]),  # 1 of 27 is less than an eighth
        ([3, 9, 3, 9], [[1, 3], [0, 2]]),
        ([8, 6], [[0], [1]]),  # 2 of 16 are an eighth
        ([8, 7], [[0, 1]]),
        ([20, 10, 10, 4], [[0], [1, 2], [3]]),  # 30 of 80 first, then 6 of 30
        ([5], [[0]]),
    ],
)
def test_a_group_is_cut_where_that_saves_an_eighth_of_its_positions(
    lengths: list[int], groups: list[list[int]]
) -> None:
    assert by_length(lengths) == groups


@drawn(st.lists(st.integers(1, 700), min_size=1, max_size=40))
def test_every_row_is_in_one_group_and_no_group_is_longer_than_the_one_before(lengths: list[int]) -> None:
    groups = by_length(lengths)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    longest = [max(lengths[row] for row in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


def test_rows_of_any_length_are_read_in_their_own_order(processor: Any) -> None:
    model, batch, where = some_rows(processor)
    whole = model(**batch, use_cache=False).logits
    calls: list[tuple[int, ...]] = []
    watch = model.model.language_model.layers[0].register_forward_hook(
        lambda module, args, out: calls.append(tuple(args[0].shape[:2]))
    )
    read, given = whole_pass(model, LLAVA, batch, where)
    watch.remove()
    assert torch.allclose(read.logits, whole[where], atol=1e-5)
    rows, length = where.shape
    assert len(calls) > 1 and sum(rows * length for rows, length in calls) < rows * length
    again = decoder_pass(model, LLAVA, given, given.embeds, where)
    assert torch.allclose(again.logits, whole[where], atol=1e-5)


def test_groups_change_no_gradient(processor: Any) -> None:
    model, batch, where = some_rows(processor)
    weight = model.model.language_model.layers[0].mlp.down_proj.weight

    def gradient(logits: Tensor) -> Tensor:
        return torch.autograd.grad(logits.float().log_softmax(-1)[:, 5].sum(), weight)[0]

    plain = gradient(model(**batch, use_cache=False).logits[where])
    grouped = gradient(whole_pass(model, LLAVA, batch, where)[0].logits)
    assert torch.allclose(plain, grouped, atol=1e-5 * float(plain.abs().max()))


def test_without_a_mask_that_tells_lengths_the_batch_stays_whole() -> None:
    embeds = torch.zeros(2, 5, 4)
    assert DecoderInputs({"inputs_embeds": embeds, "attention_mask": None}).lengths == [5, 5]
    assert DecoderInputs({"inputs_embeds": embeds, "attention_mask": torch.ones(2, 1, 5, 5)}).lengths == [
        5,
        5,
    ]
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert DecoderInputs({"inputs_embeds": embeds, "attention_mask": mask}).lengths == [2, 5]


def test_a_decoder_that_is_sharded_over_ranks_is_called_once_a_pass() -> None:
    # How many groups a batch makes differs between ranks; weights are gathered from all of them at every
    # call.
    decoder = nn.Linear(4, 4)
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]])
    batch, where = DecoderInputs({"inputs_embeds": torch.zeros(2, 4, 4), "attention_mask": mask}), mask.bool()
    assert [group.rows.tolist() for group in row_groups(decoder, batch, where)] == [[1], [0]]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        decoder.bias = nn.Parameter(distribute_tensor(decoder.bias, init_device_mesh("cpu", (1,))))
        assert [group.rows.tolist() for group in row_groups(decoder, batch, where)] == [[0, 1]]
    finally:
        distributed.destroy_process_group()


def some_rows(processor: Any) -> tuple[Any, dict[str, Tensor], Tensor]:
    """A model, and rows with pictures between rows without."""
    items = [
        item.replace(image=None) if item.family == "text-heavy" else item
        for pair in zip(suite.items("vqa", "train", 4), suite.items("text-heavy", "train", 4), strict=True)
        for item in pair
    ]
    rows = collate([encode(item, processor) for item in items], processor)
    return lively(small_model(processor, layers=2)), rows.inputs, predicting_mask(rows.labels)
