"""Attention competition: which token group the deciding position attends to, head by head.

Mass is not use: what a cut edge does to the answer is measured in `knockout`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modint_training.locate.subject import Run, Subject, last_logits
from modint_training.locate.twins import GROUPS


def dominance(text: float, text_tokens: float, image: float, image_tokens: float) -> float:
    """The modality dominance index: attention to a token of the text over that to a token of the picture
    (arXiv 2508.10552). The masses are shares in [0, 1]; infinite if the picture gets nothing."""
    return (text / text_tokens) / (image / image_tokens) if image else float("inf")


def displacement(beside: float, alone: float) -> float:
    """The share of its attention that a modality loses beside the other one: 1 - beside / alone, of masses in
    two runs of the model; negative if it gains."""
    return 1 - beside / alone


@contextmanager
def eager(subject: Subject) -> Iterator[None]:
    """In the block, the decoder computes attention so that its weights can be read; elsewhere as before."""
    decoder: Any = subject.decoder
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


@torch.no_grad()
def masses(subject: Subject, run: Run) -> Tensor:
    """How the attention of the last position is shared out among the token groups  # (R, layers, heads, G)
    float32, each adding up to 1."""
    member = F.one_hot(run.groups + 1, len(GROUPS) + 1)[..., 1:].float()  # (R, L, G)
    rows = torch.arange(len(run.last), device=run.last.device)
    by_layer: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        weights = output[1][rows, :, run.last].float()  # (R, H, L)
        by_layer.append(weights @ member)

    with eager(subject):
        hooks = [layer.self_attn.register_forward_hook(keep) for layer in subject.layers]
        try:
            last_logits(subject, run)
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(by_layer, dim=1)
