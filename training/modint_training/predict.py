"""What a local model answers to items: the first token's distribution, in batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modint_guard.item import Item, is_right
from modint_training.collate import Encoded, collate, encode
from modint_training.tinyworld.conditions import HELD_OUT_WORDINGS, SELF_ASKED, WATCHED, breakdown


@torch.no_grad()
def first_logits(model: nn.Module, processor: Any, items: Sequence[Item], *, batch: int = 64) -> Tensor:
    """Logits of the position that predicts the first answer token  # (N, V), float32."""
    training = model.training
    model.eval()
    rows = [encode(item, processor) for item in items]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        found.update(zip(chosen, _forward(model, [rows[index] for index in chosen], processor), strict=True))
    model.train(training)
    return torch.stack([found[index] for index in range(len(rows))])


def _forward(model: nn.Module, rows: Sequence[Encoded], processor: Any) -> Iterable[Tensor]:
    inputs = collate(rows, processor)
    del inputs["labels"]
    device = next(model.parameters()).device
    logits = (
        model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False)
        .logits.float()
        .cpu()
    )
    return [logits[index, len(row.ids) - row.answer_length - 1] for index, row in enumerate(rows)]


def answers(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[str]:
    """The greedy first token of each answer, as text; every TinyWorld answer is one token."""
    return [
        processor.tokenizer.decode([int(token)]) for token in first_logits(model, processor, items).argmax(-1)
    ]


def right(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[bool]:
    """Which answers are right."""
    return [is_right(item, text) for item, text in zip(items, answers(model, processor, items), strict=True)]


def accuracy(model: nn.Module, processor: Any, items: Sequence[Item]) -> float:
    """Share of right answers in [0, 1]."""
    hits = right(model, processor, items)
    return sum(hits) / len(hits)


def watch(processor: Any, count: int) -> Callable[[nn.Module, int], dict[str, float]]:
    """What an `Evaluation` calls: accuracy on `count` validation items under each watched condition."""
    sets = {cell.name: cell.items("validation", count) for cell in WATCHED}
    return lambda net, step: {name: accuracy(net, processor, items) for name, items in sets.items()}


def split_rows(model: nn.Module, processor: Any, count: int) -> Iterator[dict[str, Any]]:
    """Accuracy on `count` test items a condition (watched, other wordings, self-asks), by form and task."""
    for cell in (*WATCHED, *HELD_OUT_WORDINGS, *SELF_ASKED):
        items = cell.items("test", count)
        yield from breakdown(cell, items, right(model, processor, items))
