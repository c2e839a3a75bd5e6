"""Progressive order: the joint order's rows, each once, those that need both modalities last."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.errors import ConfigError
from modint_training.data.batches import Example, step_examples
from modint_training.data.sampler import Quotas, Slot
from modint_training.data.stages import Stages
from modint_training.recipe_files import load_recipe
from modint_training.run_folder import check_resumable, write_record
from modint_training.tinyworld.source import training_source
from tests.training.small import lora_recipe

SHARES = st.tuples(*[st.integers(0, 4)] * 3).filter(any)


def vqa(slots: list[Slot]) -> int:
    return sum(slot.family == "vqa" for slot in slots)


def in_joint_order(batches: list[list[Slot]]) -> list[Slot]:
    return sorted((slot for slots in batches for slot in slots), key=lambda slot: slot.index)


def test_the_worked_example() -> None:
    stages = Stages(Quotas((2, 2, 4), 8), 8)
    # 64 rows, half of them vqa: none in the first quarter, 1, 4, 9 and 16 after one to four more steps.
    assert [vqa(stages.slots(step)) for step in range(8)] == [0, 0, 1, 3, 5, 7, 8, 8]
    backwards = Stages(Quotas((2, 2, 4), 8), 8, reverse=True)
    assert [vqa(backwards.slots(step)) for step in range(8)] == [8, 8, 7, 5, 3, 1, 0, 0]
    assert [slot.index for slot in stages.slots(0)] == [0, 1, 2, 3, 8, 9, 10, 11]


@given(SHARES, st.integers(1, 13), st.integers(1, 30), st.booleans())
def test_the_rows_are_those_of_the_joint_order_each_once(
    shares: tuple[int, int, int], batch: int, steps: int, reverse: bool
) -> None:
    quotas = Quotas(shares, batch)
    stages = Stages(quotas, steps, reverse)
    batches = [stages.slots(step) for step in range(steps)]
    assert {len(slots) for slots in batches} == {batch}
    assert in_joint_order(batches) == [slot for step in range(steps) for slot in quotas.slots(step)]


@given(SHARES, st.integers(1, 4), st.sampled_from([1, 2, 3]), st.integers(0, 9))
def test_the_ranks_deal_out_the_batch_that_one_process_has(
    shares: tuple[int, int, int], each: int, ranks: int, step: int
) -> None:
    alone = Stages(Quotas(shares, each * ranks), 8).slots(step)
    dealt = [Stages(Quotas(shares, each * ranks, rank, ranks), 8).slots(step) for rank in range(ranks)]
    assert {len(mine) for mine in dealt} == {each}
    assert in_joint_order(dealt) == alone


def drawn(order: str) -> list[Example]:
    recipe = lora_recipe("tinyworld-base", f"order={order}", "steps=4")
    examples = step_examples(recipe, training_source(recipe), steps=4)
    return [example for step in range(4) for example in examples(step)]


def test_a_run_draws_the_same_examples_in_another_order() -> None:
    orders = {order: drawn(order) for order in ("joint", "progressive", "reverse")}
    told = {order: [[row.id for row in each.rows] for each in every] for order, every in orders.items()}
    assert sorted(told["joint"]) == sorted(told["progressive"]) == sorted(told["reverse"])
    assert len({str(ids) for ids in told["joint"]}) == 32
    assert Counter(each.family for each in orders["progressive"][-8:]) == {"vqa": 8}
    assert Counter(each.family for each in orders["reverse"][:8]) == {"vqa": 8}


def test_a_run_in_stages_is_not_resumed_at_another_length(tmp_path: Path) -> None:
    recipe = lora_recipe("tinyworld-base", "order=progressive")
    write_record(tmp_path, recipe)
    check_resumable(tmp_path, recipe)
    with pytest.raises(ConfigError, match="with steps: 2, and not 9"):
        check_resumable(tmp_path, lora_recipe("tinyworld-base", "order=progressive", "steps=9"))
    with pytest.raises(ConfigError, match="with order: 'progressive', and not 'joint'"):
        check_resumable(tmp_path, lora_recipe("tinyworld-base"))


@pytest.mark.parametrize("quotas", ["[0, 0, 1]", "[1, 1, 0]"])
def test_one_kind_of_rows_has_no_order(quotas: str) -> None:
    with pytest.raises(ConfigError, match=r"order: progressive sorts examples .* one kind alone: use joint"):
        load_recipe("tinyworld-progressive", [f"quotas={quotas}"])
