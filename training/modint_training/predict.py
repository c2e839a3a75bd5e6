"""What a local model answers to items: the first token's distribution, in batches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modint_guard.item import Family, Item, is_right
from modint_training.collate import Encoded, collate, encode
from modint_training.tinyworld import suite

# Conditions the validation split is looked at under, while training: (family, perturbation).
WATCHED: tuple[tuple[Family, str], ...] = (
    ("image-heavy", "clean"),
    ("image-heavy", "true_description"),
    ("image-heavy", "misleading_description"),
    ("text-heavy", "no_image"),
    ("text-heavy", "agreeing_image"),
    ("text-heavy", "contradicting_image"),
    ("vqa", "clean"),
)


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


def accuracy(model: nn.Module, processor: Any, items: Sequence[Item]) -> float:
    """Share of right answers in [0, 1]."""
    right = [is_right(item, text) for item, text in zip(items, answers(model, processor, items), strict=True)]
    return sum(right) / len(right)


def watched_items(split: suite.Split, count: int) -> dict[str, list[Item]]:
    """`count` items of a split under each watched condition, keyed `family/perturbation`."""
    return {
        f"{family}/{name}": [suite.perturbed(item, name) for item in suite.items(family, split, count)]
        for family, name in WATCHED
    }


def figures(model: nn.Module, processor: Any, sets: Mapping[str, Sequence[Item]]) -> dict[str, float]:
    """Accuracy on each set of items."""
    return {name: accuracy(model, processor, items) for name, items in sets.items()}


def watch(processor: Any, count: int) -> Callable[[nn.Module, int], dict[str, float]]:
    """What an `Evaluation` calls: accuracy on the validation split under each watched condition."""
    sets = watched_items("validation", count)
    return lambda net, step: figures(net, processor, sets)
