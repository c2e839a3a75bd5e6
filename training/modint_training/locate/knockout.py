"""Edges cut: in a window of layers one token group may not attend to another (arXiv 2411.18620).

Attention spreads over everything, whether it is used or not; cutting an edge says what is used. A lie may
reach the deciding position on its own, or through the tokens of the question.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modint_training.locate.scoring import rights
from modint_training.locate.subject import Run, Subject, gaps, last_logits
from modint_training.locate.twins import CONTEXT, GROUPS, IMAGE, LAST, QUESTION, Twins

EDGES = ((IMAGE, LAST), (CONTEXT, LAST), (IMAGE, QUESTION), (CONTEXT, QUESTION))  # from, to
Cut = tuple[float, float, bool]
WINDOW = 1 / 4  # of the layers, at least one


def windows(layers: int) -> list[range]:
    """For each layer the layers around it in which an edge is cut: a quarter of all, and an odd number."""
    reach = max(1, round(layers * WINDOW)) // 2
    return [range(max(0, layer - reach), min(layers, layer + reach + 1)) for layer in range(layers)]


def edge_name(edge: tuple[int, int]) -> str:
    """An edge as tables name it."""
    source, target = edge
    return f"{GROUPS[source]} to {GROUPS[target]}"


def allowed(run: Run, edge: tuple[int, int]) -> Tensor:
    """Which position may attend to which: causally, to no padding, and not along the edge  # (R, 1, L, L)
    bool, queries before keys."""
    length = run.groups.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=run.groups.device).tril()
    source, target = (run.mask(group) for group in edge)
    along = target[:, :, None] & source[:, None, :]
    return (causal & (run.groups >= 0)[:, None, :] & ~along)[:, None]


@contextmanager
def cut(subject: Subject, run: Run, edge: tuple[int, int], layers: Sequence[int]) -> Iterator[None]:
    """In the block, the run's attention does not go along the edge in these layers."""
    embeds = run.inputs.embeds
    mask = torch.zeros(1, dtype=embeds.dtype, device=embeds.device).where(
        allowed(run, edge), torch.finfo(embeds.dtype).min
    )

    def masked(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    hooks = [
        subject.layers[layer].self_attn.register_forward_pre_hook(masked, with_kwargs=True)
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def knockouts(subject: Subject, lie: Run, twins: Sequence[Twins]) -> list[dict[str, list[Cut]]]:
    """What cutting each edge does to each lying row, by the edge's name, for each window of layers: by how
    much log p(true) and log p(true) - log p(lie) rise, in nats, and whether the answer is right."""
    before, _ = _scores(subject, lie, twins)
    rows: list[dict[str, list[Cut]]] = [{} for _ in twins]
    for edge in EDGES:
        for window in windows(len(subject.layers)):
            with cut(subject, lie, edge, window):
                after, right = _scores(subject, lie, twins)
            for row, risen, is_right in zip(rows, (after - before).tolist(), right, strict=True):
                row.setdefault(edge_name(edge), []).append((*risen, is_right))
    return rows


def _scores(subject: Subject, lie: Run, twins: Sequence[Twins]) -> tuple[Tensor, list[bool]]:
    """log p(true) and the gap  # (R, 2), and whether the answers are right."""
    logits = last_logits(subject, lie)
    true = torch.tensor([each.true for each in twins], device=logits.device)
    said = logits.log_softmax(-1).gather(1, true[:, None]).squeeze(1)
    return torch.stack([said, gaps(logits, twins)], dim=1), rights(subject, logits, twins)
