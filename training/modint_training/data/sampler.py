"""Which examples a batch holds: fixed quotas of the three families, determined by the batch's number alone.

Batch k of a run depends on k, the quotas and the seed, and on nothing that happened before: a resumed run
sees the batches that an uninterrupted run would have seen. The ranks of a distributed run share out each
batch, so that the whole batch is the same for any number of ranks.

Example: quotas 1 : 1 : 2 in batches of 4 are I T V V in every batch; rank 0 of 2 holds I V, rank 1 holds T V.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from modint_guard.data.item import FAMILIES, Family, Item
from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError


@dataclass(frozen=True)
class Slot:
    """One place of a batch: its number since the start of the run, its family, and how many slots of that
    family came before it."""

    index: int
    family: Family
    turn: int


ItemSource = Callable[[Slot], Item]  # gives the example for a slot


@dataclass(frozen=True)
class Quotas:
    """Batches of `batch` examples in the proportions `shares` (image-heavy : text-heavy : vqa), shared out to
    `ranks` processes."""

    shares: tuple[int, int, int]
    batch: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.ranks:
            raise ConfigError(
                f"batch: {self.batch} examples cannot be shared out evenly to {self.ranks} processes; "
                f"choose a multiple of {self.ranks}"
            )

    def slots(self, step: int) -> list[Slot]:
        """This rank's slots of batch number `step`."""
        first = step * self.batch
        return [self.slot(index) for index in range(first + self.rank, first + self.batch, self.ranks)]

    def slot(self, index: int) -> Slot:
        """Slot number `index` of the run: the families take turns in the order of their quotas."""
        wheel = [family for family, share in zip(FAMILIES, self.shares, strict=True) for _ in range(share)]
        rounds, place = divmod(index, len(wheel))
        family = wheel[place]
        return Slot(index, family, rounds * wheel.count(family) + wheel[:place].count(family))


def pick(slot: Slot, size: int, seed: int) -> int:
    """Which of the `size` examples of its family a slot takes: each one once an epoch, in an order drawn anew
    for every epoch."""
    epoch, place = divmod(slot.turn, size)
    return _order(seed, slot.family, epoch, size)[place]


@lru_cache(maxsize=8)
def _order(seed: int, family: Family, epoch: int, size: int) -> Sequence[int]:
    order = list(range(size))
    shuffled: random.Random = seeded("epoch", seed, family, epoch)
    shuffled.shuffle(order)
    return order
