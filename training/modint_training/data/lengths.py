"""Whether every example of a data set can be read and is short enough, checked before the first step."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from PIL import Image
from tqdm import tqdm

from modint_guard.data import DataSet, numbers_of_each
from modint_guard.data.item import FAMILIES, Item
from modint_guard.data.perturb import REGISTRY, applicable, clean_view, perturb
from modint_guard.data.samples import Sample
from modint_guard.errors import DataError
from modint_training.data.batches import PLACEHOLDER, Pools, example_number, length_error, twin_rng
from modint_training.data.collate import encode
from modint_training.data.sampler import Quotas, Slot
from modint_training.data.twins import fits, twin_kind
from modint_training.method.families import vision_of
from modint_training.recipe import TuneRecipe


def check_lengths(
    recipe: TuneRecipe,
    config: Any,
    processor: Any,
    data: DataSet,
    pools: Pools,
    steps: int,
    *,
    quiet: bool = False,
) -> None:
    """Check the clean view of every example, and every twin that one of the `steps` will draw; `config` is
    the base model's. No picture is decoded.

    Raises DataError, with file, line and sample id, for an example that would stop the run. Shows a progress
    bar if it takes more than two seconds.
    """
    sized = vision_of(processor).sized
    rows = tqdm(
        _rows_to_check(recipe, pools, steps),
        "lengths",
        sum(map(len, pools.values())) + sum(1 for _ in _slots_with_twin(recipe, steps)),
        unit="row",
        leave=False,
        delay=2,
        disable=quiet,
    )
    for number, slot in rows:
        sample = data.sample(number)
        item = _with_placeholders(sample, sized=sized)
        row = clean_view(item) if slot is None else _twin(recipe, slot, item)
        if row is not None:
            _check(recipe, config, processor, sample, row)


def check_validation(recipe: TuneRecipe, config: Any, processor: Any, data: DataSet, count: int) -> None:
    """The same for the first `count` labelled examples of each family, which are measured while training and
    for the card: clean, and under every registered perturbation that fits."""
    sized = vision_of(processor).sized
    for sample in map(data.sample, numbers_of_each(data, count)):
        item = _with_placeholders(sample, sized=sized)
        twins = (perturb(item, name) for name in REGISTRY if fits(item, name))
        for row in (clean_view(item), *twins):
            _check(recipe, config, processor, sample, row)


def _rows_to_check(recipe: TuneRecipe, pools: Pools, steps: int) -> Iterator[tuple[int, Slot | None]]:
    """The number of every example, then the number of the example in each slot that has a twin, with that
    slot."""
    return chain(
        ((number, None) for numbers in pools.values() for number in numbers),
        ((example_number(slot, pools, recipe.seed), slot) for slot in _slots_with_twin(recipe, steps)),
    )


def _slots_with_twin(recipe: TuneRecipe, steps: int) -> Iterator[Slot]:
    """The slots of the run whose family the recipe perturbs."""
    quotas, kinds = Quotas(recipe.quotas, recipe.batch), set(recipe.perturbations)
    families = {family for family in FAMILIES if kinds & {kind.name for kind in applicable(family)}}
    return (slot for step in range(steps) for slot in quotas.slots(step) if slot.family in families)


def _with_placeholders(sample: Sample, *, sized: bool) -> Item:
    """The item with placeholder pictures, of the real sizes if the number of picture tokens depends on
    them."""
    pictures = {
        name: Image.new("L", picture.size()) if sized else PLACEHOLDER
        for name, picture in sample.pictures.items()
    }
    return sample.item.replace(**pictures)


def _twin(recipe: TuneRecipe, slot: Slot, item: Item) -> Item | None:
    drawn = twin_kind(recipe, item, twin_rng(recipe, slot))
    if drawn is None:
        return None
    name, seed = drawn
    # Drawing noise takes time, and only the picture's size counts here.
    return perturb(item, "black" if name == "noise" else name, seed=seed).replace(perturbation=name)


def _check(recipe: TuneRecipe, config: Any, processor: Any, sample: Sample, row: Item) -> None:
    try:
        encoded = encode(row, processor)
    except DataError as exc:
        raise sample.row.error(exc.problem.removeprefix(f"item {row.id}: "), row.id) from exc
    error = length_error(encoded, recipe)
    if error is None and row.image is not None:
        error = vision_of(processor).text_error(processor, config, encoded.text)
    if error:
        subject = "it" if row.perturbation == sample.item.perturbation else f"its twin, {row.perturbation},"
        raise sample.row.error(f"{subject} {error}", row.id)
