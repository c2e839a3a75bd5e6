"""The multiply-adds of a training step: a bound on its cost, counted and not timed.

A weight that a position passes through costs one multiply-add forward and one backward, for the gradient of
its input; a trained weight costs a third, for its own gradient. Attention's products of positions with
positions, norms and elementwise operations are left out: in rows of a few dozen positions they are a few per
cent. So a pass costs its positions times the weights that they pass through, and a step is a sum of passes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bench.step_cost.straightforward import perturbed_or_alone
from modint_training.method.batch import Batch
from modint_training.method.families import ModelFamily
from modint_training.method.masks import answer_mask
from modint_training.method.passes import by_length, unwrap


@dataclass(frozen=True)
class WeightCounts:
    """The weights that a position passes through: in the frozen decoder, in its adapter, in the head, and in
    vision tower and connector."""

    decoder: int
    adapter: int
    head: int
    tower: int


@dataclass(frozen=True)
class Work:
    """The positions of a step: `trained` in decoder passes whose gradient moves weights, `attacked` in
    decoder passes whose gradient moves the noise, `read` whose logits are made, `seen` in the vision
    tower."""

    trained: int
    attacked: int
    read: int
    seen: int


def multiply_adds(work: Work, weights: WeightCounts) -> int:
    """The multiply-adds of one step; the vision tower and the weights under the adapter are frozen."""
    both_ways = 2 * (weights.decoder + weights.adapter)
    return (
        work.trained * (both_ways + weights.adapter)
        + work.attacked * both_ways
        + work.read * 2 * weights.head
        + work.seen * weights.tower
    )


def weight_counts(model: nn.Module, family: ModelFamily) -> WeightCounts:
    """The weights of linear and convolution layers; looking up an embedding multiplies nothing."""
    counts = dict.fromkeys(("decoder", "adapter", "head", "tower"), 0)
    for name, module in unwrap(model).named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            counts[_part(name, family)] += module.weight.numel()
    return WeightCounts(**counts)


def _part(module: str, family: ModelFamily) -> str:
    if ".lora_" in module:
        return "adapter"
    if module == family.head:
        return "head"
    return "decoder" if module.startswith(family.decoder) else "tower"


def minimal_work(batch: Batch, attack_steps: int, patches: int) -> Work:
    """What these passes need at least: every token of every row; the tokens of attacked rows once more for
    each of the attack's steps and for its result; logits where an answer is predicted; each distinct picture
    once. `patches` is the number of a picture's positions in the vision tower."""
    pictures = len(batch.inputs["pixel_values"].flatten(1).unique(dim=0))
    return _work(batch, sum, attack_steps, pictures * patches)


def our_work(batch: Batch, attack_steps: int, patches: int) -> Work:
    """What `modint_training.method.step` runs: the minimal work, the padding inside groups of similar length,
    and a picture as often as rows show it."""
    return _work(batch, _grouped_positions, attack_steps, len(batch.inputs["pixel_values"]) * patches)


def straightforward_work(batch: Batch, attack_steps: int, patches: int, image_token: int) -> Work:
    """What `bench.step_cost.straightforward` runs on a batch that it has padded: rows without a twin are
    attacked too, every pass runs the vision tower again, and logits are made of all positions."""
    rows, length = batch.labels.shape
    again = perturbed_or_alone(batch.clean_row)
    pictured = (batch.inputs["input_ids"] == image_token).any(-1)
    trained, attacked = (rows + len(again)) * length, attack_steps * len(again) * length
    pictures = int(pictured.sum()) + (1 + attack_steps) * int(pictured[again].sum())
    return Work(trained, attacked, trained + attacked, pictures * patches)


def _work(batch: Batch, positions: Callable[[list[int]], int], attack_steps: int, seen: int) -> Work:
    again, answers = batch.attackable.any(-1), answer_mask(batch.labels).sum(-1)
    lengths = batch.inputs["attention_mask"].sum(-1)
    repeated = positions(lengths[again].tolist())
    return Work(
        trained=positions(lengths.tolist()) + repeated,
        attacked=attack_steps * repeated,
        read=int(answers.sum()) + (1 + attack_steps) * int(answers[again].sum()),
        seen=seen,
    )


def _grouped_positions(lengths: list[int]) -> int:
    groups = by_length(lengths) if lengths else []
    return sum(len(group) * max(lengths[row] for row in group) for group in groups)
