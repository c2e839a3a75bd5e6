"""Vary drawings at random, so that the tower learns things and not one artist's hand."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = 64  # pixels of a side, as the tower sees them


@dataclass(frozen=True)
class Dice:
    """Random numbers of one batch, all from one generator."""

    count: int
    generator: torch.Generator

    def uniform(self, *shape: int) -> Tensor:
        """Between 0 and 1  # (B, *shape)"""
        return torch.rand(self.count, *shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal  # (B, *shape)"""
        return torch.randn(self.count, *shape, generator=self.generator)

    def happens(self, share: float) -> Tensor:
        """Whether each picture of the batch is one of this share  # (B, 1, 1, 1), bool"""
        return self.uniform(1, 1, 1) < share


def plain(drawings: Tensor, scale: float = 0.9) -> Tensor:
    """Drawings on white, centred: `drawings`  # (B, 4, S, S), uint8, to (B, 3, 64, 64) from 0 to 1."""
    turn = torch.zeros(len(drawings), 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = 1 / scale
    colour, alpha = _resampled(drawings, turn)
    return colour + 1 - alpha


def varied(drawings: Tensor, generator: torch.Generator) -> Tensor:
    """Drawings turned, stretched, mirrored, recoloured, outlined, on any background, blurred and partly
    covered: `drawings`  # (B, 4, S, S), uint8, to (B, 3, 64, 64) from 0 to 1."""
    dice = Dice(len(drawings), generator)
    premultiplied, alpha = _resampled(drawings, _turns(dice))
    colour = _recoloured(premultiplied / alpha.clamp_min(1e-3), dice)
    edge = F.max_pool2d(1 - alpha, 3, 1, 1) * alpha
    colour = torch.where(dice.happens(0.2), colour * (1 - 0.9 * edge), colour)
    picture = colour * alpha + _background(dice) * (1 - alpha)
    blurred = F.interpolate(F.avg_pool2d(picture, 2), SIZE, mode="bilinear", align_corners=False)
    picture = torch.where(dice.happens(0.2), blurred, picture)
    picture = torch.where(_hole(dice), dice.uniform(3, 1, 1), picture)
    return (picture + 0.03 * dice.normal(3, SIZE, SIZE) * dice.uniform(1, 1, 1)).clamp(0, 1)


def _resampled(drawings: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Colours times alpha, and alpha, after affine maps  # (B, 2, 3)"""
    values = drawings.float() / 255
    values = torch.cat([values[:, :3] * values[:, 3:], values[:, 3:]], dim=1)
    grid = F.affine_grid(turns, [len(values), 4, SIZE, SIZE], align_corners=False)
    seen = F.grid_sample(values, grid, align_corners=False)
    return seen[:, :3], seen[:, 3:]


def _turns(dice: Dice) -> Tensor:
    scale = 0.75 + 0.35 * dice.uniform()
    aspect = torch.exp(0.06 * dice.normal())
    angle = 0.12 * dice.normal()
    mirror = torch.where(dice.uniform() < 0.5, -1.0, 1.0)
    turns = torch.zeros(dice.count, 2, 3)
    turns[:, 0, 0] = mirror * angle.cos() / scale * aspect
    turns[:, 0, 1] = -angle.sin() / scale
    turns[:, 1, 0] = mirror * angle.sin() / scale
    turns[:, 1, 1] = angle.cos() / scale / aspect
    turns[:, :, 2] = 0.07 * dice.normal(2)
    return turns


def _recoloured(colour: Tensor, dice: Dice) -> Tensor:
    mix = torch.eye(3) + 0.06 * dice.normal(3, 3)
    mix = torch.where(dice.uniform(1, 1) < 0.08, torch.eye(3) + 0.45 * dice.normal(3, 3), mix)
    mix = torch.where(dice.uniform(1, 1) < 0.05, torch.full((3, 3), 1 / 3), mix)
    colour = torch.einsum("bij,bjhw->bihw", mix, colour)
    colour = colour * (0.85 + 0.3 * dice.uniform(1, 1, 1)) + 0.06 * dice.normal(1, 1, 1)
    return colour.clamp(0, 1) ** torch.exp(0.15 * dice.normal(1, 1, 1))


def _background(dice: Dice) -> Tensor:
    """White for half of the pictures, else any colour, some with a slope  # (B, 3, 64, 64)"""
    colour = torch.where(dice.happens(0.7), torch.ones(3, 1, 1), dice.uniform(3, 1, 1))
    slope = torch.linspace(-0.5, 0.5, SIZE) * dice.normal(3, 1, 1) * 0.3
    return (colour + torch.where(dice.happens(0.15), slope, torch.zeros(1))).clamp(0, 1)


def _hole(dice: Dice) -> Tensor:
    """A square that covers part of three pictures in ten  # (B, 1, 64, 64), bool"""
    across, down = SIZE * dice.uniform(1, 1), SIZE * dice.uniform(1, 1)
    reach = 4 + 12 * dice.uniform(1, 1)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    hole = ((columns - across).abs() < reach) & ((rows - down).abs() < reach)
    return hole[:, None] & dice.happens(0.1)
