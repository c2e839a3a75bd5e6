"""What is measured on validation examples while an adapter trains: loss, accuracy, flips."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modint_guard.data import DataSet, first_of_each
from modint_guard.data.item import Item, is_right
from modint_guard.data.perturb import CLEAN, clean_view, perturb
from modint_training.data.collate import Encoded, collate, encode
from modint_training.data.twins import fits
from modint_training.method.families import family_of
from modint_training.method.losses import cross_entropies
from modint_training.method.masks import known_mask, predicted, predicting_mask
from modint_training.method.passes import bare, dealt_out, whole_pass
from modint_training.method.ranks import of_all_ranks, rank, world

Figures = Callable[[nn.Module, int], dict[str, float]]

MOST_ROWS, MOST_TOKENS = 64, 16_384  # of a batch, padding included


@dataclass(frozen=True)
class Watched:
    """Items under a condition `family/perturbation`; flips are counted against the answers to the same items
    in the condition `clean`."""

    name: str
    items: Sequence[Item]
    clean: str


@dataclass(frozen=True)
class Seen:
    """What a model says to an item: the first token it would answer with, whether it is right, and the loss
    of the true answer, in nats over `tokens` tokens (none without a label)."""

    first: int
    right: bool
    loss: float
    tokens: int


def own_watched(data: DataSet, count: int, kinds: Sequence[str]) -> list[Watched]:
    """The first `count` labelled examples of each family, clean and under each of `kinds` that fits them."""
    found = first_of_each(data, count)
    watched = []
    for family in dict.fromkeys(item.family for item in found):
        own, clean = [item for item in found if item.family == family], f"{family}/{CLEAN}"
        watched.append(Watched(clean, [clean_view(item) for item in own], clean))
        for kind in kinds:
            if disturbed := [perturb(item, kind) for item in own if fits(item, kind)]:
                watched.append(Watched(f"{family}/{kind}", disturbed, clean))
    return watched


def figures_of(watched: Sequence[Watched], processor: Any) -> Figures:
    """What an `Evaluation` calls: `loss`, the mean cross-entropy of all true answers in nats a token; the
    accuracy in each condition; and `condition/flips`, the share of items whose first token is another than in
    the clean condition. Nothing is watched: no figures. Of several ranks each looks at a part of the items;
    all have the figures of the whole."""

    def figures(model: nn.Module, step: int) -> dict[str, float]:
        found = {each.name: look_together(model, processor, each.items) for each in watched}
        every = [seen for rows in found.values() for seen in rows]
        measured = {
            "loss": sum(seen.loss for seen in every) / max(1, sum(seen.tokens for seen in every)),
            **{name: sum(seen.right for seen in rows) / len(rows) for name, rows in found.items()},
        }
        for each in watched:
            if each.name != each.clean:
                measured[f"{each.name}/flips"] = _flips(each, watched, found)
        return measured

    return figures if watched else lambda model, step: {}


def _flips(each: Watched, watched: Sequence[Watched], found: dict[str, list[Seen]]) -> float:
    (clean,) = (other for other in watched if other.name == each.clean)
    first = {item.id: seen.first for item, seen in zip(clean.items, found[clean.name], strict=True)}
    pairs = zip(each.items, found[each.name], strict=True)
    return sum(seen.first != first[item.id] for item, seen in pairs) / len(each.items)


def look_together(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[Seen]:
    """As `look`, by all ranks, which share the items out, unless the model needs all of them for each."""
    if dealt_out(model):
        return look(model, processor, items)
    parts = of_all_ranks(look(model, processor, items[rank() % world() :: world()]))
    return [parts[place % len(parts)][place // len(parts)] for place in range(len(items))]


@torch.no_grad()
def look(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[Seen]:
    """What the model says to each item; logits are made where answers are decided, and nowhere else.

    An answer is right where greedy decoding gives all of its tokens, or where the first token alone reads as
    the answer.
    """
    training = model.training
    model.eval()
    family, device = family_of(bare(model).config.model_type), next(model.parameters()).device
    rows = [encode(item, processor) for item in items]
    found: dict[int, Seen] = {}
    for chosen in batches(rows):
        inputs = {
            name: value.to(device)
            for name, value in collate([rows[index] for index in chosen], processor).items()
        }
        labels = inputs.pop("labels")
        where = predicting_mask(labels)
        read, _ = whole_pass(model, family, inputs, where)
        loss = cross_entropies(read.logits, predicted(labels))
        greedy = read.logits.argmax(-1)
        said = zip(*(_by_row(values, where) for values in (greedy, loss)), strict=True)
        for index, (tokens, losses) in zip(chosen, said, strict=True):
            found[index] = _seen(items[index], rows[index], tokens.tolist(), losses, processor)
    model.train(training)
    return [found[index] for index in range(len(items))]


def _by_row(values: Tensor, where: Tensor) -> tuple[Tensor, ...]:
    return values.cpu().split(where.sum(-1).tolist())


def _seen(item: Item, row: Encoded, greedy: list[int], losses: Tensor, processor: Any) -> Seen:
    truth = row.labels[len(row.ids) - row.answer_length :]
    exact = item.labelled and greedy[:-1] == truth[:-1]  # the end token aside
    tokens = int(known_mask(torch.tensor(truth)).sum())
    right = exact or is_right(item, processor.tokenizer.decode(greedy[:1]))
    return Seen(greedy[0], right, float(losses.sum()), tokens)


def batches(rows: Sequence[Encoded]) -> Iterator[list[int]]:
    """The places of rows of like length, as many together as may be."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    chosen: list[int] = []
    for index in order:
        if chosen and (len(chosen) == MOST_ROWS or (len(chosen) + 1) * len(rows[index].ids) > MOST_TOKENS):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen
