"""The training batch: clean examples and their perturbed twins side by side, with what the losses must
know."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modint_training.method.masks import answer_mask, known_mask

# The arguments that a model is called with, by name: `input_ids`  # (B, L), `pixel_values`, ...
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """B rows, padded to L tokens, each a clean example or its twin: a micro-batch, or the whole batch of a
    step."""

    inputs: Inputs
    labels: Tensor  # (B, L) int64, IGNORED where no loss reads
    clean_row: Tensor  # (B,) int64: for a twin the row of its clean version, for every other row -1
    attackable: Tensor  # (B, L) bool: positions whose input embedding the attack may change
    row_seeds: Tensor  # (B,) int64: the seed of the attack on each row
    counts: Tensor  # (3,) float32: `token_counts` of the whole batch that this is a part of


def token_counts(labels: Tensor, clean_row: Tensor, attackable: Tensor) -> Tensor:
    """The divisors of the three losses  # (3,) float32: the number of known answer tokens in all rows, of
    those in attacked rows, and of tokens at which twins, heuristic and attacked, are compared with their
    clean rows.

    A twin without a label is compared at one token, and never attacked.
    """
    answers = answer_mask(labels).sum(-1)
    attacked = answers[attackable.any(-1)].sum()
    known = known_mask(labels).sum()
    return torch.stack([known, attacked, answers[clean_row >= 0].sum() + attacked]).float()
