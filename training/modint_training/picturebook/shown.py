"""The drawings that the tower is taught on: every trained thing in every trained style, varied at random."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modint_guard.data.perturb import seeded
from modint_training.picturebook.augment import plain, varied
from modint_training.picturebook.drawings import HELD_OUT_STYLE, codes, drawing, styles_of
from modint_training.picturebook.things import TRAINED, Thing

NAMES = [thing.name for thing in TRAINED]


@dataclass(frozen=True)
class DrawnBatch:
    """Pictures as the tower is handed them, and what they show."""

    pixels: Tensor  # (B, 3, 64, 64), from -1 to 1
    things: Tensor  # (B,) int64: places in TRAINED


@dataclass(frozen=True)
class Drawings:
    """pixels  # (N, 4, 72, 72), uint8; things  # (N,), int64: places in TRAINED"""

    pixels: Tensor
    things: Tensor

    def plain(self) -> DrawnBatch:
        """All of them as they are asked about."""
        return DrawnBatch(_for_the_tower(plain(self.pixels)), self.things)

    def batch(self, count: int, generator: torch.Generator) -> DrawnBatch:
        """`count` varied drawings, each thing equally often."""
        shares = 1 / torch.bincount(self.things).float()[self.things]
        chosen = torch.multinomial(shares, count, replacement=True, generator=generator)
        return DrawnBatch(_for_the_tower(varied(self.pixels[chosen], generator)), self.things[chosen])


def trained_drawings() -> Drawings:
    """Every trained thing in every trained style that has it."""
    return _drawings([(thing, style) for thing in TRAINED for style in styles_of(thing.code)])


def held_out_drawings() -> Drawings:
    """The same things in the style that no training sees."""
    return _drawings([(thing, HELD_OUT_STYLE) for thing in TRAINED if thing.code in codes(HELD_OUT_STYLE)])


def _drawings(shown: list[tuple[Thing, str]]) -> Drawings:
    pixels = np.stack([drawing(thing.code, style) for thing, style in shown])
    things = torch.tensor([TRAINED.index(thing) for thing, _ in shown])
    return Drawings(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), things)


def drawn_batches(stage: str, seed: int, count: int) -> Callable[[int], list[DrawnBatch]]:
    """Batch k of a stage: it depends on stage, seed and k alone."""
    drawings = trained_drawings()

    def batch(step: int) -> list[DrawnBatch]:
        generator = torch.Generator().manual_seed(seeded(stage, seed, step).getrandbits(62))
        return [drawings.batch(count, generator)]

    return batch


def _for_the_tower(pictures: Tensor) -> Tensor:
    """Values from 0 to 1 as the processor hands them on, from -1 to 1."""
    return (pictures - 0.5) / 0.5
