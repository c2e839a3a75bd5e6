"""The training batch: perturbed twins side by side, as the step reads it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modint_training.method.masks import answer_mask, known_mask

Batch = dict[str, Any]
# What a batch holds beside the model's own inputs.
PLAN = ("labels", "clean_row", "attackable", "row_seeds", "counts")


def counts(labels: Tensor, clean_row: Tensor, attackable: Tensor) -> Tensor:
    """Known answer tokens of all rows, of attacked rows, and the tokens that all twins are compared at,
    heuristic and attacked  # (3,), float32. A twin without a label is compared at one, and never attacked."""
    answers = answer_mask(labels).sum(-1)
    attacked = answers[attackable.any(-1)].sum()
    known = known_mask(labels).sum()
    return torch.stack([known, attacked, answers[clean_row >= 0].sum() + attacked]).float()
