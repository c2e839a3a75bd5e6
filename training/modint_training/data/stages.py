"""The order of a run's rows: those that need both modalities last (progressive), or the reverse of that.

The rows are those of the joint order, each once: what differs is when they come. `x` being the share of the
run that is over, the share of multimodal rows (vqa) in a batch is

    0 until x = s, then rising linearly, and 1 from x = t on

with (s + t) / 2 = 1 - m, where m is their share of the whole run, and t - s = min(m, 1 - m). With quotas of
2 : 2 : 4 they begin after a quarter of the run and are alone in its last quarter. Within each of the two
kinds the joint order stays; the reverse has the same batches from the last to the first.
"""

import math
from dataclasses import dataclass

from modint_guard.data.item import FAMILIES
from modint_training.data.sampler import Quotas, Slot

MULTIMODAL = FAMILIES.index("vqa")


@dataclass(frozen=True)
class Stages:
    """The slots of a run of `steps` steps in progressive order, or in reverse."""

    quotas: Quotas
    steps: int
    reverse: bool = False

    def slots(self, step: int) -> list[Slot]:
        """This rank's slots of batch number `step`; behind the end of the run those of the joint order."""
        quotas, batch = self.quotas, self.quotas.batch
        if step >= self.steps:
            return quotas.slots(step)
        place = self.steps - 1 - step if self.reverse else step
        before, after = self._multimodal(place), self._multimodal(place + 1)
        mixed = [self._index(rank, multimodal=True) for rank in range(before, after)]
        others = range(place * batch - before, (place + 1) * batch - after)
        alone = [self._index(rank, multimodal=False) for rank in others]
        return [quotas.slot(index) for index in sorted(mixed + alone)[quotas.rank :: quotas.ranks]]

    def _multimodal(self, step: int) -> int:
        """How many multimodal rows come before this step."""
        rows = self.steps * self.quotas.batch
        whole = self._count_below(rows)
        share = whole / rows
        ramp = min(share, 1 - share)
        begins = 1 - share - ramp / 2
        into = min(max(step / self.steps - begins, 0.0), ramp)
        passed = into * into / (2 * ramp) if ramp else 0.0
        return math.floor(rows * (passed + max(0.0, step / self.steps - begins - ramp)) + 0.5)

    def _count_below(self, rows: int) -> int:
        """How many of the first `rows` slots of the joint order are multimodal."""
        wheel, places = self._places(multimodal=True)
        rounds, rest = divmod(rows, wheel)
        return rounds * len(places) + sum(place < rest for place in places)

    def _index(self, rank: int, *, multimodal: bool) -> int:
        """The index in the joint order of the row with this rank among those of its kind."""
        wheel, places = self._places(multimodal=multimodal)
        rounds, place = divmod(rank, len(places))
        return rounds * wheel + places[place]

    def _places(self, *, multimodal: bool) -> tuple[int, list[int]]:
        """The length of a round of the joint order, and the places of a kind in it."""
        wheel = [family for family, share in enumerate(self.quotas.shares) for _ in range(share)]
        kind = [place for place, family in enumerate(wheel) if (family == MULTIMODAL) == multimodal]
        return len(wheel), kind
