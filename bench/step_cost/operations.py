"""How many multiply-adds a training step takes: a bound on its cost, counted and not timed.

A position that passes a weight forward is one multiply-add, and one more on the way back, for the gradient of
what came in; a weight that is trained takes a third, for its own gradient. Attention's products of positions
with positions, norms, and what is done to each element are left out: in rows of some dozens of positions they
are a few in a hundred. So a pass is its positions times the weights they meet, and a step is a sum of passes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bench.step_cost.straightforward import perturbed_or_alone
from modint_training.method.batch import Batch
from modint_training.method.families import ModelFamily
from modint_training.method.masks import answer_mask
from modint_training.method.passes import bare, by_length


@dataclass(frozen=True)
class Parts:
    """Weights that a position meets: the frozen decoder's, its adapter's, the head's, those of tower and
    connector."""

    decoder: int
    adapter: int
    head: int
    tower: int


@dataclass(frozen=True)
class Work:
    """Positions of a step: decoder passes whose gradient moves weights (`learnt`) and those whose gradient
    moves the noise (`climbed`), positions that logits are made of, and those of pictures in the tower."""

    learnt: int
    climbed: int
    read: int
    seen: int


def multiply_adds(work: Work, parts: Parts) -> int:
    """Of one step; the tower and the weights under the adapter are frozen."""
    both_ways = 2 * (parts.decoder + parts.adapter)
    return (
        work.learnt * (both_ways + parts.adapter)
        + work.climbed * both_ways
        + work.read * 2 * parts.head
        + work.seen * parts.tower
    )


def parts_of(model: nn.Module, family: ModelFamily) -> Parts:
    """The weights of linear and convolution layers; looking up an embedding multiplies nothing."""
    found = dict.fromkeys(("decoder", "adapter", "head", "tower"), 0)
    for name, module in bare(model).named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            found[_part(name, family)] += module.weight.numel()
    return Parts(**found)


def _part(module: str, family: ModelFamily) -> str:
    if ".lora_" in module:
        return "adapter"
    if module == family.head:
        return "head"
    return "decoder" if module.startswith(family.decoder) else "tower"


def needed(batch: Batch, climbs: int, patches: int) -> Work:
    """What these passes cannot do without: every token of every row, those of attacked rows once more for
    each of the attack's `climbs` and for its result, logits where an answer is predicted, each distinct
    picture once. `patches` are a picture's positions in the tower."""
    pictures = len(batch["pixel_values"].flatten(1).unique(dim=0))
    return _answers_read(batch, sum, climbs, pictures * patches)


def ours(batch: Batch, climbs: int, patches: int) -> Work:
    """What `modint_training.method.step` runs: that with the padding inside groups of like length,
    and a picture as often as rows show it."""
    return _answers_read(batch, _laid_out, climbs, len(batch["pixel_values"]) * patches)


def straightforward(batch: Batch, climbs: int, patches: int, image_token: int) -> Work:
    """What `bench.step_cost.straightforward` runs on a batch that it has padded: rows without a twin are
    attacked too, every pass sees its pictures anew, and logits are made of all positions."""
    rows, length = batch["labels"].shape
    again = perturbed_or_alone(batch["clean_row"])
    pictured = (batch["input_ids"] == image_token).any(-1)
    learnt, climbed = (rows + len(again)) * length, climbs * len(again) * length
    pictures = int(pictured.sum()) + (1 + climbs) * int(pictured[again].sum())
    return Work(learnt, climbed, learnt + climbed, pictures * patches)


def _answers_read(batch: Batch, positions: Callable[[list[int]], int], climbs: int, seen: int) -> Work:
    again, answers = batch["attackable"].any(-1), answer_mask(batch["labels"]).sum(-1)
    lengths = batch["attention_mask"].sum(-1)
    repeated = positions(lengths[again].tolist())
    return Work(
        learnt=positions(lengths.tolist()) + repeated,
        climbed=climbs * repeated,
        read=int(answers.sum()) + (1 + climbs) * int(answers[again].sum()),
        seen=seen,
    )


def _laid_out(lengths: list[int]) -> int:
    groups = by_length(lengths) if lengths else []
    return sum(len(group) * max(lengths[row] for row in group) for group in groups)
