"""Examples, their twins, and the batches a step learns from."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from modint_guard.data import DataSet
from modint_guard.data.item import FAMILIES, Family, Item
from modint_guard.data.perturb import clean_view, seeded
from modint_guard.data.samples import Sample
from modint_guard.errors import ConfigError, DataError
from modint_training.data.collate import Encoded, collate, encode, parts_of
from modint_training.data.sampler import Quotas, Slot, Source, pick
from modint_training.data.twins import fits, twin
from modint_training.method.batch import Batch, counts
from modint_training.method.masks import modality_mask
from modint_training.recipe import TuneRecipe


@dataclass(frozen=True)
class Group:
    """An example's rows: its clean view, then its twin where it has one; `seed` starts the attack on the
    twin."""

    family: Family
    rows: tuple[Item, ...]
    seed: int


def twin_batches(
    recipe: TuneRecipe, processor: Any, source: Source, *, rank: int = 0, ranks: int = 1
) -> Callable[[int], list[Batch]]:
    """Batch k: examples in the quotas of the recipe, each followed by its twin where it has one.

    `source` gives an example for a slot. The batch comes in the recipe's
    micro-batches, all of which carry the counts of the whole.
    """
    check_dealt_out(recipe, ranks)
    quotas = Quotas(recipe.quotas, recipe.batch, rank, ranks)

    def group(slot: Slot) -> Group:
        item = source(slot)
        other = twin(
            item, recipe.perturbations, recipe.controls, recipe.control_share, twin_rng(recipe, slot)
        )
        rows = (clean_view(item),) if other is None else (clean_view(item), other)
        return Group(item.family, rows, seeded("attack", recipe.seed, slot.index).getrandbits(63))

    def batch(step: int) -> list[Batch]:
        groups = [group(slot) for slot in quotas.slots(step)]
        size = len(groups) // recipe.micro_batches
        made = [
            planned(groups[start : start + size], processor, recipe) for start in range(0, len(groups), size)
        ]
        whole = torch.stack([part["counts"] for part in made]).sum(0)
        return [{**part, "counts": whole} for part in made]

    return batch


def check_dealt_out(recipe: TuneRecipe, ranks: int) -> None:
    """ConfigError where a batch cannot be dealt out evenly to the processes and their micro-batches: the
    losses of what is left over would be counted in another step, or never."""
    whole = ranks * recipe.micro_batches
    if recipe.batch % whole:
        raise ConfigError(
            f"batch: {recipe.batch} examples cannot be dealt out evenly to {ranks} processes with "
            f"micro_batches: {recipe.micro_batches} each; choose a multiple of {whole}, or fewer of them"
        )


def twin_rng(recipe: TuneRecipe, slot: Slot) -> random.Random:
    """What decides on the twin of a slot's example."""
    return seeded("lora", recipe.seed, slot.index)


def planned(groups: Sequence[Group], processor: Any, recipe: TuneRecipe) -> Batch:
    """One micro-batch: the model's inputs, and what `method.step_loss` wants to know of its rows
    (method.PLAN)."""
    clean_row: list[int] = []
    for group in groups:
        clean_row += [-1, *[len(clean_row)] * (len(group.rows) - 1)]
    rows = [checked(encode(row, processor), row, recipe) for group in groups for row in group.rows]
    of_row = torch.tensor([FAMILIES.index(group.family) for group in groups for _ in group.rows])
    twins = torch.tensor(clean_row)
    batch = collate(rows, processor)
    if recipe.attack is None:
        attackable = torch.zeros_like(batch["labels"], dtype=torch.bool)
    else:
        mask = modality_mask(parts_of(rows), of_row, recipe.attack.mask)
        # An attack climbs the loss of the answer: where nobody knows it there is nothing to climb.
        known = torch.tensor([row.labelled for group in groups for row in group.rows])
        attackable = mask & ((twins >= 0) & known).unsqueeze(1)
    return {
        **batch,
        "clean_row": twins,
        "attackable": attackable,
        "row_seeds": torch.tensor([group.seed for group in groups for _ in group.rows]),
        "counts": counts(batch["labels"], twins, attackable),
    }


def checked(row: Encoded, item: Item, recipe: TuneRecipe) -> Encoded:
    """Refuse a row that is too long: cutting it could cut picture tokens or the answer."""
    if said := too_long(row, recipe):
        raise DataError(f"item {item.id} {said}")
    return row


def too_long(row: Encoded, recipe: TuneRecipe) -> str | None:
    """What to say of a row that is too long; None of one that is not."""
    if len(row.ids) <= recipe.max_length:
        return None
    return (
        f"takes {len(row.ids)} tokens, more than max_length: {recipe.max_length}; nothing is truncated: "
        "shorten its text, take a smaller picture or raise max_length"
    )


Pools = Mapping[Family, Sequence[int]]  # the examples of each family, by their numbers in a data set


def pools_of(recipe: TuneRecipe, found: DataSet) -> Pools:
    """The examples that the recipe can learn from, of the families it draws; no picture is decoded.

    DataError where a quota has none to draw from.
    """
    pools: dict[Family, list[int]] = {
        family: [] for family, quota in zip(FAMILIES, recipe.quotas, strict=True) if quota
    }
    for number, sample in enumerate(found.samples()):
        if sample.item.family in pools and _teaches(recipe, sample):
            pools[sample.item.family].append(number)
    for family, numbers in pools.items():
        if not numbers:
            wanted = recipe.quotas[FAMILIES.index(family)]
            raise DataError(
                f"{recipe.data} holds no {family} examples to learn from, of which quotas: "
                f"{list(recipe.quotas)} wants {wanted}; set that quota to 0 or add some{_nameless(found)}"
            )
    return pools


def _nameless(found: DataSet) -> str:
    """What else to do where rows do not say their family."""
    count = sum(sample.item.family == "unknown" for sample in found.samples())
    return f", or name that of the {count} rows which do not say theirs (reading.family=…)" if count else ""


def _teaches(recipe: TuneRecipe, sample: Sample) -> bool:
    """Whether an example has a label, or a twin that its clean view must agree with."""
    if sample.item.labelled:
        return True
    held = sample.item.replace(**dict.fromkeys(sample.pictures, SOME_PICTURE))
    agrees = recipe.consistency != "none" and recipe.consistency_weight > 0
    return agrees and any(fits(held, name) for name in recipe.perturbations)


SOME_PICTURE = Image.new("RGB", (1, 1))  # that there is one is all that is asked


def data_source(recipe: TuneRecipe, found: DataSet, pools: Pools) -> Source:
    """A data set's examples, every one of a family once an epoch, each read when it is drawn."""
    return lambda slot: found[number_of(slot, pools, recipe.seed)]


def number_of(slot: Slot, pools: Pools, seed: int) -> int:
    """Which example of a data set a slot takes."""
    numbers = pools[slot.family]
    return numbers[pick(slot, len(numbers), seed)]
