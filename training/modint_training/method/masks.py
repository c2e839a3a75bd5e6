"""Which positions a loss reads, and which ones an attack may change. All masks are bool."""

import torch
from torch import Tensor

from modint_guard.data.item import FAMILIES
from modint_training.method.labels import IGNORED, UNKNOWN, Part
from modint_training.recipe import AttackMask

IMAGE_HEAVY, TEXT_HEAVY, VQA = range(len(FAMILIES))  # the values of `families`  # (B,)

_TEXT = (Part.FRAME, Part.CONTEXT, Part.QUESTION)
# The parts that may be attacked, by kind of mask and family of the row; of rows that need both modalities
# none, unless there is no mask.
_ATTACKED: dict[AttackMask, dict[int, tuple[Part, ...]]] = {
    "span": {IMAGE_HEAVY: (Part.CONTEXT,), TEXT_HEAVY: (Part.IMAGE,)},
    "modality": {IMAGE_HEAVY: _TEXT, TEXT_HEAVY: (Part.IMAGE,)},
    "none": dict.fromkeys((IMAGE_HEAVY, TEXT_HEAVY, VQA), (*_TEXT, Part.IMAGE)),
}


def answer_mask(labels: Tensor) -> Tensor:
    """Positions that hold answer tokens, the end token included; in a row without a label, the one position
    where its answer would begin  # (B, L)."""
    return labels != IGNORED


def known_mask(labels: Tensor) -> Tensor:
    """Positions that hold answer tokens of rows with a label  # (B, L)."""
    return answer_mask(labels) & (labels != UNKNOWN)


def predicting_mask(labels: Tensor) -> Tensor:
    """Positions whose logits predict an answer token: the position before each answer token  # (B, L).

    The reference code of arXiv 2505.19616 reads consistency one position later, at the answer tokens
    themselves, and so never at the decision of a one-letter answer.
    """
    shifted = torch.zeros_like(labels, dtype=torch.bool)
    shifted[:, :-1] = answer_mask(labels)[:, 1:]
    return shifted


def answer_tokens(labels: Tensor) -> Tensor:
    """The answer tokens, in the order in which `logits[predicting_mask(labels)]` predicts them; UNKNOWN for a
    row without a label  # (N,)."""
    return labels[:, 1:][answer_mask(labels)[:, 1:]]


def modality_mask(parts: Tensor, families: Tensor, kind: AttackMask) -> Tensor:
    """Positions whose input embeddings an attack may change  # (B, L) bool.

    `parts`  # (B, L) holds values of `Part`, `families`  # (B,) indices into `item.FAMILIES`. Image-heavy
    rows are attacked in their text, text-heavy rows in their picture, rows that need both not at all (arXiv
    2505.19616, section 4); answers and padding are never attacked. The kinds differ in image-heavy rows.
    `span`: the injected context alone; question, options and system prompt stay as they are. `modality`:
    every text token before the answer, as in the paper: template, system prompt, context, question, options.
    `none`, the ablation without a mask: these and the picture's tokens, in rows of every family.
    """
    allowed = torch.zeros_like(parts, dtype=torch.bool)
    for family, attacked in _ATTACKED[kind].items():
        in_part = torch.isin(parts, torch.tensor(attacked, device=parts.device))
        allowed |= in_part & (families == family).unsqueeze(1)
    return allowed


def flat_indices(rows: Tensor, mask: Tensor) -> Tensor:
    """Where the masked positions of `rows`  # (R,), row after row, stand among all masked positions  # (N,).

    With `chosen = states[mask]`, `chosen[flat_indices(rows, mask)]` is `states[rows][mask[rows]]`.
    """
    index = mask.flatten().cumsum(0).view(mask.shape) - 1  # (B, L)
    return index[rows][mask[rows]]
