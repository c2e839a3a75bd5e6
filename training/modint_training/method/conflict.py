"""Gradient conflict: whether two kinds of rows pull the modules of an adapter in opposite directions.

A block is a module with an adapter, its A and B together. For each block and each window of a few batches
the gradient of the rows' losses is taken at the same weights for two kinds of rows, and compared by its
cosine and by its magnitude similarity (arXiv 2001.06782). Two contrasts are measured:

    modality  image-heavy rows against text-heavy rows
    twins     clean rows against their perturbed twins

A cosine of few rows is pulled to 0 by noise. The null is therefore measured beside it: every kind is split
into two halves, and a half of one kind is compared with a half of the other, and with the other half of its
own kind. All of these hold equally many rows, so that they are equally noisy. Conflict is a cosine below the
5 % quantile of the null: without any, 5 % are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from modint_guard.data.item import FAMILIES, Family
from modint_training.method.batch import Batch
from modint_training.method.families import family_of
from modint_training.method.losses import cross_entropies
from modint_training.method.masks import answer_tokens, predicting_mask
from modint_training.method.passes import unwrap, whole_pass
from modint_training.method.ranks import sum_over_ranks

QUANTILE = 0.05  # of the null, below which a cosine counts as conflict
_PREFIX, _ADAPTER = "base_model.model.", ".lora_"


class Kind(NamedTuple):
    """The rows of one gradient: their family, whether they are twins, and their half of the window (0, 1)."""

    family: Family
    twin: bool
    half: int


COMPARED = FAMILIES[:2]  # image-heavy and text-heavy: the families that have twins
KINDS = [Kind(*each) for each in product(COMPARED, (False, True), (0, 1))]
# For each contrast, whether a row is of its first kind; every other row is of its second.
CONTRASTS: Mapping[str, Callable[[Kind], bool]] = {
    "modality": lambda kind: kind.family == COMPARED[0],
    "twins": lambda kind: not kind.twin,
}


class Conflict(TypedDict):
    """One block in one window, after `step`: the cosine and the magnitude similarity of the gradients of all
    rows; the cosines between halves of the two kinds, and within the kinds (`null`). None, or left out of a
    list, if a gradient is 0."""

    step: int
    contrast: str
    block: str
    cosine: float | None
    similarity: float | None
    halves: list[float]
    null: list[float]


def cosine(first: Tensor, second: Tensor) -> float | None:
    """The cosine of two vectors, in [-1, 1]; None if one of them is 0."""
    norms = float(first.norm()) * float(second.norm())
    return max(-1.0, min(1.0, float(first @ second) / norms)) if norms else None


def magnitude_similarity(first: Tensor, second: Tensor) -> float | None:
    """2|a||b| / (|a|^2 + |b|^2), in [0, 1]: 1 for vectors of equal length; None if both are 0."""
    a, b = float(first.norm()), float(second.norm())
    return 2 * a * b / (a * a + b * b) if a or b else None


def blocks_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The adapter's trainable parameters by module, under its name in the model without the adapter."""
    blocks: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        module, adapter, _ = name.partition(_ADAPTER)
        if adapter and parameter.requires_grad:
            blocks.setdefault(module.removeprefix(_PREFIX), []).append(parameter)
    return blocks


def row_losses(model: nn.Module, batch: Batch) -> Tensor:
    """The cross-entropy of each row's answer: the mean over its tokens, so that long answers do not outweigh
    letters  # (B,) in nats."""
    predicting = predicting_mask(batch.labels)
    family = family_of(unwrap(model).config.model_type)
    outputs, _ = whole_pass(model, family, batch.inputs, predicting)
    losses = cross_entropies(outputs.logits, answer_tokens(batch.labels))
    sums = losses.new_zeros(len(batch.labels)).index_add(0, predicting.nonzero()[:, 0], losses)
    return sums / predicting.sum(-1)


class GradientSums:
    """Sums over rows of the gradients of their losses with respect to the adapter, by kind of row."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks = blocks_of(model)
        size = sum(parameter.numel() for block in self.blocks.values() for parameter in block)
        device = next(model.parameters()).device
        self.sums = {kind: torch.zeros(size, device=device) for kind in KINDS}  # float32, block after block
        self.rows = {kind: torch.zeros((), device=device) for kind in KINDS}

    def add(self, family: Family, half: int, batch: Batch) -> None:
        """Add the rows of a batch, all of one family and half. The parameters' own `grad` stays as it is."""
        parameters = [parameter for block in self.blocks.values() for parameter in block]
        losses, twins = row_losses(self.model, batch), batch.clean_row >= 0
        for twin in (False, True):
            chosen, kind = losses[twins == twin], Kind(family, twin, half)
            if not len(chosen):
                continue
            gradients = torch.autograd.grad(
                chosen.sum(), parameters, retain_graph=not twin, materialize_grads=True
            )
            self.sums[kind] += torch.cat([gradient.flatten().float() for gradient in gradients])
            self.rows[kind] += len(chosen)

    def conflicts(self, step: int) -> list[Conflict]:
        """One record for each contrast that has rows of both kinds, and each block; over the rows of all
        ranks, which must all call."""
        sums = {kind: sum_over_ranks(value) for kind, value in self.sums.items()}
        rows = {kind: float(sum_over_ranks(value)) for kind, value in self.rows.items()}
        records = []
        for contrast, is_first in CONTRASTS.items():
            sides = [[kind for kind in KINDS if is_first(kind) == first] for first in (True, False)]
            if not all(any(rows[kind] for kind in side) for side in sides):
                continue
            means = [[_mean(sums, rows, side, half) for half in (0, 1, None)] for side in sides]
            for block, place in self._places():
                first, second = ([mean[place] for mean in of_side] for of_side in means)
                records.append(conflict_of(step, contrast, block, first, second))
        return records

    def _places(self) -> Iterator[tuple[str, slice]]:
        start = 0
        for name, block in self.blocks.items():
            end = start + sum(parameter.numel() for parameter in block)
            yield name, slice(start, end)
            start = end


def _mean(
    sums: Mapping[Kind, Tensor], rows: Mapping[Kind, float], side: Sequence[Kind], half: int | None
) -> Tensor:
    """The mean gradient of one side's rows in a half, or in both  # (P,)."""
    kinds = [kind for kind in side if half in (kind.half, None)]
    return torch.stack([sums[kind] for kind in kinds]).sum(0) / max(1.0, sum(rows[kind] for kind in kinds))


def conflict_of(
    step: int, contrast: str, block: str, first: Sequence[Tensor], second: Sequence[Tensor]
) -> Conflict:
    """The record of one block from the gradients of its two kinds of rows, each of a half, the other
    half, and all."""
    crossed = (cosine(first[0], second[1]), cosine(first[1], second[0]))
    within = (cosine(first[0], first[1]), cosine(second[0], second[1]))
    return {
        "step": step,
        "contrast": contrast,
        "block": block,
        "cosine": cosine(first[2], second[2]),
        "similarity": magnitude_similarity(first[2], second[2]),
        "halves": [value for value in crossed if value is not None],
        "null": [value for value in within if value is not None],
    }


class Summary(TypedDict):
    """A contrast over all windows: the null's 5 % quantile, and the share of cosines below it, over all
    blocks (`rate`) and by block, with each block's mean cosine."""

    windows: int
    null_quantile: float
    rate: float
    blocks: dict[str, dict[str, float | None]]


def summary_of(records: Sequence[Conflict]) -> dict[str, Summary]:
    """The contrasts that were measured, each summed up; without halves to compare a contrast has none."""
    summaries: dict[str, Summary] = {}
    for contrast in CONTRASTS:
        chosen = [record for record in records if record["contrast"] == contrast]
        null = [value for record in chosen for value in record["null"]]
        halves = [value for record in chosen for value in record["halves"]]
        if not (null and halves):
            continue
        below = float(np.quantile(null, QUANTILE))
        blocks = dict.fromkeys(record["block"] for record in chosen)
        summaries[contrast] = {
            "windows": len({record["step"] for record in chosen}),
            "null_quantile": below,
            "rate": _share_below(halves, below) or 0.0,
            "blocks": {block: _block_summary(block, chosen, below) for block in blocks},
        }
    return summaries


def _block_summary(block: str, records: Sequence[Conflict], below: float) -> dict[str, float | None]:
    own = [record for record in records if record["block"] == block]
    cosines = [record["cosine"] for record in own if record["cosine"] is not None]
    return {
        "cosine": sum(cosines) / len(cosines) if cosines else None,
        "rate": _share_below([value for record in own for value in record["halves"]], below),
    }


def _share_below(values: Sequence[float], limit: float) -> float | None:
    return sum(value < limit for value in values) / len(values) if values else None
