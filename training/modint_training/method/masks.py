"""Which positions a loss reads and which an attack may touch. All masks are bool."""

import torch
from torch import Tensor

from modint_guard.data.item import FAMILIES
from modint_training.method.labels import IGNORED, UNKNOWN, Part
from modint_training.recipe import AttackMask

IMAGE_HEAVY, TEXT_HEAVY, VQA = range(len(FAMILIES))  # what `families` holds  # (B,)

_TEXT = (Part.FRAME, Part.CONTEXT, Part.ASKED)
# What an attack may touch, by the kind of mask and the row's family; rows that need both modalities: nothing.
_ATTACKED: dict[AttackMask, dict[int, tuple[Part, ...]]] = {
    "span": {IMAGE_HEAVY: (Part.CONTEXT,), TEXT_HEAVY: (Part.IMAGE,)},
    "modality": {IMAGE_HEAVY: _TEXT, TEXT_HEAVY: (Part.IMAGE,)},
    "none": {IMAGE_HEAVY: (*_TEXT, Part.IMAGE), TEXT_HEAVY: (*_TEXT, Part.IMAGE)},
}


def answer_mask(labels: Tensor) -> Tensor:
    """Positions that hold answer tokens, the end token included; of a row without a label the one where its
    answer would begin  # (B, L)."""
    return labels != IGNORED


def known_mask(labels: Tensor) -> Tensor:
    """Positions that hold answer tokens of rows with a label  # (B, L)."""
    return answer_mask(labels) & (labels != UNKNOWN)


def predicting_mask(labels: Tensor) -> Tensor:
    """Positions whose logits predict an answer token: one before each (t-1)  # (B, L).

    The reference code of arXiv 2505.19616 reads consistency at t, where a one-letter answer's decision is
    never seen.
    """
    shifted = torch.zeros_like(labels, dtype=torch.bool)
    shifted[:, :-1] = answer_mask(labels)[:, 1:]
    return shifted


def predicted(labels: Tensor) -> Tensor:
    """The answer tokens in the order `logits[predicting_mask(labels)]` predicts them, UNKNOWN for a row
    without a label  # (tokens,)."""
    return labels[:, 1:][answer_mask(labels)[:, 1:]]


def modality_mask(parts: Tensor, families: Tensor, kind: AttackMask) -> Tensor:
    """Positions whose input embeddings an attack may change  # (B, L) bool.

    `parts`  # (B, L) are collate.Part, `families`  # (B,) are places in item.FAMILIES. Image-heavy rows are
    attacked in their text, text-heavy rows in their picture, rows that need both never (arXiv 2505.19616,
    section 4); answers and padding never. By kind, an image-heavy row is attacked in `span`: the injected
    context alone; the question, the options and the system prompt stay as they are; `modality`: every text
    token before the answer, as the paper does: template, system prompt, context, question, options; `none`:
    those and the picture's tokens, the ablation without a mask; so are text-heavy rows then.
    """
    allowed = torch.zeros_like(parts, dtype=torch.bool)
    for family, attacked in _ATTACKED[kind].items():
        held = torch.isin(parts, torch.tensor(attacked, device=parts.device))
        allowed |= held & (families == family).unsqueeze(1)
    return allowed


def tokens_of(rows: Tensor, mask: Tensor) -> Tensor:
    """Where the masked positions of `rows`  # (R,), row after row, stand among all of `mask`'s  # (tokens,).

    With `found = states[mask]`, `found[tokens_of(rows, mask)]` is `states[rows][mask[rows]]`.
    """
    place = mask.flatten().cumsum(0).view(mask.shape) - 1  # (B, L)
    return place[rows][mask[rows]]
