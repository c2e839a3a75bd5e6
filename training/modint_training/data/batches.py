"""Examples, their twins, and the batches that a step trains on."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from modint_guard.data import DataSet
from modint_guard.data.item import FAMILIES, Family, Item
from modint_guard.data.perturb import clean_view, seeded
from modint_guard.data.samples import Sample
from modint_guard.errors import ConfigError, DataError
from modint_training.data.collate import Encoded, collate, encode, parts_of
from modint_training.data.sampler import ItemSource, Quotas, Slot, pick
from modint_training.data.stages import Stages
from modint_training.data.twins import fits, twin
from modint_training.method.batch import Batch, token_counts
from modint_training.method.masks import VQA, modality_mask
from modint_training.recipe import AttackRows, TuneRecipe


@dataclass(frozen=True)
class Example:
    """The rows of one example: its clean view and, if it has one, its twin; `seed` starts the attack on the
    twin, if that is `attacked`."""

    family: Family
    rows: tuple[Item, ...]
    seed: int
    attacked: bool = True


Dress = Callable[[Item, random.Random], Item]  # puts a twin's context where it stands in a chat


def twin_batches(
    recipe: TuneRecipe,
    processor: Any,
    source: ItemSource,
    *,
    rank: int = 0,
    ranks: int = 1,
    dress: Dress | None = None,
    steps: int | None = None,
) -> Callable[[int], list[Batch]]:
    """A function that gives the micro-batches of step k: examples in the recipe's quotas, each followed by
    its twin if it has one.

    `source` gives the example for a slot; `dress` changes where a twin's context stands; `steps` is the run's
    length, which an order other than `joint` needs. All micro-batches of a step carry the token counts of the
    whole batch. Raises ConfigError if a batch cannot be shared out to
    ranks and micro-batches.
    """
    check_divides(recipe, ranks)
    examples_of_step = step_examples(recipe, source, rank=rank, ranks=ranks, dress=dress, steps=steps)

    def micro_batches(step: int) -> list[Batch]:
        examples = examples_of_step(step)
        size = len(examples) // recipe.micro_batches
        parts = [
            batch_of(examples[start : start + size], processor, recipe)
            for start in range(0, len(examples), size)
        ]
        whole = torch.stack([part.counts for part in parts]).sum(0)
        return [replace(part, counts=whole) for part in parts]

    return micro_batches


def step_examples(
    recipe: TuneRecipe,
    source: ItemSource,
    *,
    rank: int = 0,
    ranks: int = 1,
    dress: Dress | None = None,
    steps: int | None = None,
) -> Callable[[int], list[Example]]:
    """A function that gives the examples of step k: this rank's, in the recipe's quotas and order, with their
    twins; the arguments are those of `twin_batches`."""
    slots = _slots(recipe, Quotas(recipe.quotas, recipe.batch, rank, ranks), steps)

    def example(slot: Slot) -> Example:
        item = source(slot)
        perturbed = twin(recipe, item, twin_rng(recipe, slot))
        if perturbed is not None and dress is not None:
            perturbed = dress(perturbed, seeded("dress", recipe.seed, slot.index))
        rows = (clean_view(item),) if perturbed is None else (clean_view(item), perturbed)
        rng = seeded("attack", recipe.seed, slot.index)
        seed, share = rng.getrandbits(63), recipe.attack.share if recipe.attack else 0.0
        return Example(item.family, rows, seed, attacked=rng.random() < share)

    return lambda step: [example(slot) for slot in slots(step)]


def _slots(recipe: TuneRecipe, quotas: Quotas, steps: int | None) -> Callable[[int], list[Slot]]:
    """The slots of a step in the recipe's order."""
    if recipe.order == "joint":
        return quotas.slots
    assert steps is not None  # the rows of a step depend on it
    return Stages(quotas, steps, reverse=recipe.order == "reverse").slots


def check_divides(recipe: TuneRecipe, ranks: int) -> None:
    """ConfigError if a batch cannot be shared out evenly to the processes and their micro-batches: the losses
    of the remainder would be counted in another step, or never."""
    parts = ranks * recipe.micro_batches
    if recipe.batch % parts:
        raise ConfigError(
            f"batch: {recipe.batch} examples cannot be shared out evenly to {ranks} processes with "
            f"micro_batches: {recipe.micro_batches} each; choose a multiple of {parts}, or fewer of them"
        )


def twin_rng(recipe: TuneRecipe, slot: Slot) -> random.Random:
    """The generator that draws the twin of a slot's example."""
    return seeded("lora", recipe.seed, slot.index)


def batch_of(examples: Sequence[Example], processor: Any, recipe: TuneRecipe) -> Batch:
    """The examples' rows as one micro-batch. Raises DataError for a row that is too long."""
    clean_row: list[int] = []
    for example in examples:
        clean_row += [-1, *[len(clean_row)] * (len(example.rows) - 1)]
    rows = [checked(encode(item, processor), item, recipe) for example in examples for item in example.rows]
    families = torch.tensor([FAMILIES.index(example.family) for example in examples for _ in example.rows])
    twins = torch.tensor(clean_row)
    collated = collate(rows, processor)
    if recipe.attack is None:
        attackable = torch.zeros_like(collated.labels, dtype=torch.bool)
    else:
        mask = modality_mask(parts_of(rows), families, recipe.attack.mask)
        # The attack raises the loss of the answer: without a label there is no such loss.
        drawn = torch.tensor(
            [example.attacked and item.labelled for example in examples for item in example.rows]
        )
        attackable = mask & (_is_attacked(recipe.attack.rows, twins, families) & drawn).unsqueeze(1)
    return Batch(
        inputs=collated.inputs,
        labels=collated.labels,
        clean_row=twins,
        attackable=attackable,
        row_seeds=torch.tensor([example.seed for example in examples for _ in example.rows]),
        counts=token_counts(collated.labels, twins, attackable),
    )


def _is_attacked(rows: AttackRows, twins: torch.Tensor, families: torch.Tensor) -> torch.Tensor:
    """Whether the recipe's attack is on each row: `twins`  # (B,) gives the clean row of a twin, else -1."""
    if rows == "all":
        return torch.ones_like(twins, dtype=torch.bool)
    return (twins >= 0) | (families == VQA) if rows == "twins_and_vqa" else twins >= 0


def checked(row: Encoded, item: Item, recipe: TuneRecipe) -> Encoded:
    """The row; DataError if it is too long: cutting it could cut picture tokens or the answer."""
    if error := length_error(row, recipe):
        raise DataError(f"item {item.id} {error}")
    return row


def length_error(row: Encoded, recipe: TuneRecipe) -> str | None:
    """The error message for a row that is too long; None if it is short enough."""
    if len(row.ids) <= recipe.max_length:
        return None
    return (
        f"takes {len(row.ids)} tokens, more than max_length: {recipe.max_length}; nothing is truncated: "
        "shorten its text, take a smaller picture or raise max_length"
    )


Pools = Mapping[Family, Sequence[int]]  # the examples of each family, by their numbers in a data set


def pools_of(recipe: TuneRecipe, data: DataSet) -> Pools:
    """The examples that the recipe can train on, of the families that it draws; no picture is decoded.

    Raises DataError if there is none for a quota.
    """
    pools: dict[Family, list[int]] = {
        family: [] for family, quota in zip(FAMILIES, recipe.quotas, strict=True) if quota
    }
    for number, sample in enumerate(data.samples()):
        if sample.item.family in pools and _is_usable(recipe, sample):
            pools[sample.item.family].append(number)
    for family, numbers in pools.items():
        if not numbers:
            quota = recipe.quotas[FAMILIES.index(family)]
            raise DataError(
                f"{recipe.data} holds no {family} examples to train on, of which quotas: "
                f"{list(recipe.quotas)} wants {quota}; set that quota to 0 or add some"
                f"{_unknown_family_hint(data)}"
            )
    return pools


def _unknown_family_hint(data: DataSet) -> str:
    """A further remedy if some rows do not name their family."""
    count = sum(sample.item.family == "unknown" for sample in data.samples())
    return f", or name that of the {count} rows which do not say theirs (reading.family=…)" if count else ""


def _is_usable(recipe: TuneRecipe, sample: Sample) -> bool:
    """Whether an example has a label, or a twin that its clean view is to agree with."""
    if sample.item.labelled:
        return True
    item = sample.item.replace(**dict.fromkeys(sample.pictures, PLACEHOLDER))
    is_compared = recipe.consistency != "none" and recipe.consistency_weight > 0
    return is_compared and any(fits(item, name) for name in recipe.perturbations)


# Stands for a picture that need not be decoded; large enough for every perturbation to draw on.
PLACEHOLDER = Image.new("RGB", (32, 32))


def data_source(recipe: TuneRecipe, data: DataSet, pools: Pools) -> ItemSource:
    """A data set's examples, each of a family once an epoch; each is read when it is drawn."""
    return lambda slot: data[example_number(slot, pools, recipe.seed)]


def example_number(slot: Slot, pools: Pools, seed: int) -> int:
    """The number, in its data set, of the example that a slot takes."""
    numbers = pools[slot.family]
    return numbers[pick(slot, len(numbers), seed)]
