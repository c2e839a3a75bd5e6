"""What is measured on validation items while a model trains: loss, accuracy, flips."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modint_guard.data import DataSet, first_of_each
from modint_guard.data.item import Item, is_right
from modint_guard.data.perturb import CLEAN, clean_view, perturb
from modint_training.data.collate import Encoded, collate, encode, on_device
from modint_training.data.twins import fits
from modint_training.method.families import family_of
from modint_training.method.losses import cross_entropies
from modint_training.method.masks import answer_tokens, known_mask, predicting_mask
from modint_training.method.passes import is_sharded, unwrap, whole_pass
from modint_training.method.ranks import gather_over_ranks, joined_processes, rank

Figures = dict[str, float]  # by name
Evaluate = Callable[[nn.Module, int], Figures]  # of a model at a step

MAX_ROWS, MAX_TOKENS = 64, 16_384  # of a batch, padding included


@dataclass(frozen=True)
class ValidationSet:
    """Items under the condition `name` (`family/perturbation`); flips are counted against the answers to the
    same items in the condition `clean`."""

    name: str
    items: Sequence[Item]
    clean: str


@dataclass(frozen=True)
class Measured:
    """One item's answer: the first token of the greedy answer, whether the answer is right, and the loss of
    the true answer, in nats, summed over its `tokens` (0 without a label)."""

    first: int
    right: bool
    loss: float
    tokens: int


def validation_sets(data: DataSet, count: int, kinds: Sequence[str]) -> list[ValidationSet]:
    """The first `count` labelled examples of each family, clean and under each of `kinds` that fits them."""
    items = first_of_each(data, count)
    sets = []
    for family in dict.fromkeys(item.family for item in items):
        of_family, clean = [item for item in items if item.family == family], f"{family}/{CLEAN}"
        sets.append(ValidationSet(clean, [clean_view(item) for item in of_family], clean))
        for kind in kinds:
            if perturbed := [perturb(item, kind) for item in of_family if fits(item, kind)]:
                sets.append(ValidationSet(f"{family}/{kind}", perturbed, clean))
    return sets


def validation_figures(sets: Sequence[ValidationSet], processor: Any) -> Evaluate:
    """The figures that an `Evaluation` keeps: `loss`, the mean cross-entropy of all true answers in nats a
    token; the accuracy in each condition; and `condition/flips`, the share of items whose first token differs
    from that in the clean condition. No figures without sets. With several ranks each measures a part of the
    items, and all get the figures of the whole."""

    def figures(model: nn.Module, step: int) -> Figures:
        measured = _measure_sets(model, processor, sets)
        every = [answer for answers in measured.values() for answer in answers]
        return {
            "loss": sum(answer.loss for answer in every) / max(1, sum(answer.tokens for answer in every)),
            **_accuracies(measured),
            **{
                f"{each.name}/flips": _flips(each, sets, measured) for each in sets if each.name != each.clean
            },
        }

    return figures if sets else lambda model, step: {}


def accuracy_figures(sets: Sequence[ValidationSet], processor: Any) -> Evaluate:
    """The accuracies of `validation_figures` alone."""
    return lambda model, step: _accuracies(_measure_sets(model, processor, sets))


def _measure_sets(
    model: nn.Module, processor: Any, sets: Sequence[ValidationSet]
) -> dict[str, list[Measured]]:
    return {each.name: measure_on_all_ranks(model, processor, each.items) for each in sets}


def _accuracies(measured: Mapping[str, Sequence[Measured]]) -> dict[str, float]:
    return {
        name: sum(answer.right for answer in answers) / len(answers) for name, answers in measured.items()
    }


def _flips(
    each: ValidationSet, sets: Sequence[ValidationSet], measured: Mapping[str, Sequence[Measured]]
) -> float:
    (clean,) = (other for other in sets if other.name == each.clean)
    first = {item.id: answer.first for item, answer in zip(clean.items, measured[clean.name], strict=True)}
    pairs = zip(each.items, measured[each.name], strict=True)
    return sum(answer.first != first[item.id] for item, answer in pairs) / len(each.items)


def measure_on_all_ranks(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[Measured]:
    """As `measure`; the ranks share the items out, unless the weights are sharded, since then every rank is
    needed for every item."""
    if is_sharded(model):
        return measure(model, processor, items)
    parts = gather_over_ranks(
        measure(model, processor, items[rank() % joined_processes() :: joined_processes()])
    )
    return [parts[index % len(parts)][index // len(parts)] for index in range(len(items))]


@torch.no_grad()
def measure(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[Measured]:
    """The model's answer to each item; logits are made only where answer tokens are predicted.

    An answer is right if greedy decoding gives all of its tokens, or if the first token alone reads as the
    answer.
    """
    training = model.training
    model.eval()
    family, device = family_of(unwrap(model).config.model_type), next(model.parameters()).device
    rows = [encode(item, processor) for item in items]
    measured: dict[int, Measured] = {}
    for chosen in batches(rows):
        collated = collate([rows[index] for index in chosen], processor)
        inputs, labels = on_device(collated.inputs, device), collated.labels.to(device)
        predicting = predicting_mask(labels)
        outputs, _ = whole_pass(model, family, inputs, predicting)
        losses = cross_entropies(outputs.logits, answer_tokens(labels))
        greedy = outputs.logits.argmax(-1)
        by_row = zip(*(_by_row(values, predicting) for values in (greedy, losses)), strict=True)
        for index, (row_greedy, row_losses) in zip(chosen, by_row, strict=True):
            measured[index] = _measured(items[index], rows[index], row_greedy.tolist(), row_losses, processor)
    model.train(training)
    return [measured[index] for index in range(len(items))]


def _by_row(values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return values.cpu().split(mask.sum(-1).tolist())


def _measured(item: Item, row: Encoded, greedy: list[int], losses: Tensor, processor: Any) -> Measured:
    truth = row.labels[len(row.ids) - row.answer_length :]
    is_exact = item.labelled and greedy[:-1] == truth[:-1]  # the end token aside
    tokens = int(known_mask(torch.tensor(truth)).sum())
    right = is_exact or is_right(item, processor.tokenizer.decode(greedy[:1]))
    return Measured(greedy[0], right, float(losses.sum()), tokens)


def batches(rows: Sequence[Encoded]) -> Iterator[list[int]]:
    """The indices of rows of similar length, in batches of at most MAX_ROWS rows and MAX_TOKENS tokens."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    chosen: list[int] = []
    for index in order:
        if chosen and (len(chosen) == MAX_ROWS or (len(chosen) + 1) * len(rows[index].ids) > MAX_TOKENS):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen
