"""Which examples a batch holds: quotas, epochs, ranks, and nothing that happened before."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.errors import ConfigError
from modint_training.data.sampler import Quotas, Slot, pick

SHARES = st.tuples(*[st.integers(0, 4)] * 3).filter(any)


def families(slots: list[Slot]) -> str:
    return "".join({"image-heavy": "I", "text-heavy": "T", "vqa": "V"}[slot.family] for slot in slots)


def test_the_worked_example() -> None:
    assert families(Quotas((1, 1, 2), 4).slots(0)) == families(Quotas((1, 1, 2), 4).slots(7)) == "ITVV"
    assert families(Quotas((1, 1, 2), 4, rank=0, ranks=2).slots(3)) == "IV"
    assert families(Quotas((1, 1, 2), 4, rank=1, ranks=2).slots(3)) == "TV"


@given(SHARES, st.integers(1, 4), st.integers(0, 50))
def test_a_batch_of_whole_rounds_holds_its_quotas_exactly(
    shares: tuple[int, int, int], rounds: int, step: int
) -> None:
    found = Counter(families(Quotas(shares, rounds * sum(shares)).slots(step)))
    assert (found["I"], found["T"], found["V"]) == tuple(rounds * share for share in shares)


@given(SHARES, st.integers(1, 13), st.integers(1, 8))
def test_a_familys_turns_are_counted_without_a_gap(
    shares: tuple[int, int, int], batch: int, steps: int
) -> None:
    slots = [slot for step in range(steps) for slot in Quotas(shares, batch).slots(step)]
    assert [slot.index for slot in slots] == list(range(batch * steps))
    for family in ("image-heavy", "text-heavy", "vqa"):
        turns = [slot.turn for slot in slots if slot.family == family]
        assert turns == list(range(len(turns)))


@given(SHARES, st.integers(1, 4), st.sampled_from([1, 2, 3, 4]), st.integers(0, 20))
def test_the_ranks_deal_out_the_very_batch_that_one_process_has(
    shares: tuple[int, int, int], each: int, ranks: int, step: int
) -> None:
    alone = Quotas(shares, each * ranks).slots(step)
    dealt = [Quotas(shares, each * ranks, rank, ranks).slots(step) for rank in range(ranks)]
    assert {len(mine) for mine in dealt} == {each}
    assert sorted((slot for mine in dealt for slot in mine), key=lambda slot: slot.index) == alone


def test_every_example_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    epochs = [
        [pick(Slot(0, "vqa", 7 * epoch + place), 7, seed=3) for place in range(7)] for epoch in range(4)
    ]
    assert all(sorted(order) == list(range(7)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 4


def test_families_and_seeds_have_orders_of_their_own() -> None:
    def order(family: str, seed: int) -> list[int]:
        return [pick(Slot(0, family, turn), 20, seed) for turn in range(20)]  # type: ignore[arg-type]

    assert order("vqa", 0) == order("vqa", 0)
    assert order("vqa", 0) != order("vqa", 1)
    assert order("vqa", 0) != order("image-heavy", 0)


def test_what_is_picked_does_not_depend_on_what_was_picked_before() -> None:
    late = pick(Slot(0, "vqa", 1003), 10, seed=1)
    for turn in range(30):
        pick(Slot(0, "vqa", turn), 10, seed=1)
    assert pick(Slot(0, "vqa", 1003), 10, seed=1) == late


def test_a_batch_that_the_ranks_cannot_share_evenly_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="batch: 8 examples cannot be shared out evenly to 3 processes; choose a"
    ):
        Quotas((2, 2, 4), 8, 0, 3)
