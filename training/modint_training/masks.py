"""Which positions a loss reads. All masks are bool."""

import torch
from torch import Tensor

from modint_training.collate import IGNORED


def answer_mask(labels: Tensor) -> Tensor:
    """Positions that hold answer tokens, the end token included  # (B, L)."""
    return labels != IGNORED


def predicting_mask(labels: Tensor) -> Tensor:
    """Positions whose logits predict an answer token: one before each (t-1)  # (B, L).

    The reference code of arXiv 2505.19616 reads consistency at t, where a one-letter answer's decision is
    never seen.
    """
    shifted = torch.zeros_like(labels, dtype=torch.bool)
    shifted[:, :-1] = answer_mask(labels)[:, 1:]
    return shifted


def predicted(labels: Tensor) -> Tensor:
    """The answer tokens in the order `logits[predicting_mask(labels)]` predicts them  # (tokens,)."""
    return labels[:, 1:][answer_mask(labels)[:, 1:]]
