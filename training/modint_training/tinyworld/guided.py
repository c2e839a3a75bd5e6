"""Batches and loss of the base model's language training: answers, and where attention should look for
them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modint_training.data.collate import Encoded, collate
from modint_training.method.batch import Inputs
from modint_training.method.labels import IGNORED
from modint_training.tinyworld.guide import Link


@dataclass(frozen=True)
class GuidedRow:
    """A row and the links that attention should follow in it."""

    row: Encoded
    links: list[Link]


@dataclass(frozen=True)
class GuidedPart:
    """Rows of similar length, padded to the longest of them."""

    inputs: Inputs
    labels: Tensor  # (B, L) int64
    links: Tensor  # (N, 4) int64: row, layer, query, key of each link


@dataclass(frozen=True)
class GuidedBatch:
    """The rows of one step, in parts, so that little of a part is padding."""

    parts: tuple[GuidedPart, ...]


def guided_batch(rows: list[GuidedRow], count: int, processor: Any) -> GuidedBatch:
    """Rows as a batch of `count` parts."""
    rows = sorted(rows, key=lambda guided: len(guided.row.ids))
    size = -(-len(rows) // count)
    return GuidedBatch(tuple(_part(rows[at : at + size], processor) for at in range(0, len(rows), size)))


def _part(rows: list[GuidedRow], processor: Any) -> GuidedPart:
    links = [(index, *link) for index, guided in enumerate(rows) for link in guided.links]
    collated = collate([guided.row for guided in rows], processor)
    return GuidedPart(collated.inputs, collated.labels, torch.tensor(links, dtype=torch.long).reshape(-1, 4))


def guided_loss(net: nn.Module, batch: GuidedBatch, weight: float) -> Tensor:
    """Cross-entropy of the answer tokens, as the mean over rows of each row's mean, so that the number of
    parts does not matter, plus `weight` times the mean of -log(attention) over the links of all parts."""
    losses, attention_paid = [], []
    for part in batch.parts:
        out = net(**part.inputs, use_cache=False, output_attentions=True)
        losses.append(row_losses(out.logits, part.labels))
        row, layer, query, key = part.links.unbind(-1)
        heads = torch.stack([attention[:, 0] for attention in out.attentions])  # (layers, B, L, L)
        attention_paid.append(heads[layer, row, query, key].float())
    answers = torch.cat(losses).mean()
    paid = torch.cat(attention_paid)
    return answers - weight * paid.clamp_min(1e-6).log().mean() if len(paid) else answers


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Each row's mean cross-entropy, in nats, over its labelled tokens  # (B, L, V), (B, L) -> (B,).

    `labels` are IGNORED where there is none; each row has at least one.
    """
    targets = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=1) / (targets != IGNORED).sum(dim=1)
