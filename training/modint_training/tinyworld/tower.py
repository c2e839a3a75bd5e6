"""The warm-up of the base model's vision tower: to tell the digit of a picture, or count all of its
figures."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modint_guard.data.perturb import seeded
from modint_training.loop.validation import Evaluate, Figures
from modint_training.method.families import clip_pixels
from modint_training.method.labels import IGNORED
from modint_training.tinyworld import draw, suite
from modint_training.tinyworld.scenes import MOST, counts, scene
from modint_training.tinyworld.tasks import COLOURS, DIGITS, show_digit

CELLS = len(draw.SHAPES) * len(COLOURS)  # every shape in every colour
DIGIT_PICTURES = 0.3  # of the pictures; the others are scenes


@dataclass(frozen=True)
class TowerBatch:
    """Pictures of digits and of scenes; IGNORED stands for the label that a picture does not have."""

    pixel_values: Tensor  # (B, 3, H, W)
    digit: Tensor  # (B,) int64
    counts: Tensor  # (B, CELLS) int64: how many figures of each shape in each colour


class TowerHeads(nn.Module):
    """The vision tower with linear heads on class token and mean patch: one for the digit, one for the
    counts."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.digit = nn.Linear(2 * width, len(DIGITS))
        self.counts = nn.Linear(2 * width, CELLS * (MOST + 1))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the digit  # (B, 10), and of the count in each cell  # (B, CELLS, MOST + 1)."""
        states = self.tower(pixel_values=pixel_values).last_hidden_state  # (B, 1 + patches, D)
        pooled = torch.cat([states[:, 0], states[:, 1:].mean(dim=1)], dim=-1)
        return self.digit(pooled).float(), self.counts(pooled).float().unflatten(1, (CELLS, MOST + 1))


def tower_loss(net: nn.Module, batch: TowerBatch) -> Tensor:
    """Cross-entropy of digits, and of scenes' counts summed over the cells; mean over pictures."""
    digit, cells = net(batch.pixel_values)
    of_digits = nn.functional.cross_entropy(digit, batch.digit, reduction="sum", ignore_index=IGNORED)
    of_scenes = nn.functional.cross_entropy(
        cells.flatten(0, 1), batch.counts.flatten(), reduction="sum", ignore_index=IGNORED
    )
    return (of_digits + of_scenes) / len(batch.digit)


def tower_batch(split: suite.Split, seed: int, indices: range, processor: Any) -> TowerBatch:
    """Pictures number `indices` of a split: digits and scenes mixed."""
    pictures, digits, cells = [], [], []
    for index in indices:
        rng = seeded("tower", split, seed, index)
        if rng.random() < DIGIT_PICTURES:
            answer = rng.choice(DIGITS)
            picture, _ = show_digit(answer, rng, split)
            digits.append(int(answer))
            cells.append([IGNORED] * CELLS)
        else:
            drawn = scene(rng)
            picture = drawn.image
            digits.append(IGNORED)
            cells.append(counts(drawn.figures))
        pictures.append(picture)
    return TowerBatch(clip_pixels(pictures, processor), torch.tensor(digits), torch.tensor(cells))


def tower_accuracy(processor: Any, count: int) -> Evaluate:
    """Shares of validation pictures whose digit, or all of whose counts, are right; of `count` pictures."""
    batch = tower_batch("validation", 0, range(count), processor)

    @torch.no_grad()
    def figures(net: nn.Module, step: int) -> Figures:
        device = next(net.parameters()).device
        digit, cells = (logits.argmax(-1).cpu() for logits in net(batch.pixel_values.to(device)))
        is_digit = batch.digit != IGNORED
        return {
            "digit": float((digit == batch.digit)[is_digit].float().mean()),
            "scene": float((cells == batch.counts).all(dim=1)[~is_digit].float().mean()),
        }

    return figures
