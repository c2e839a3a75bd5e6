"""Whether every example of one's own can be read and is short enough, before the first step."""

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
from modint_training.data.batches import SOME_PICTURE, Pools, number_of, too_long, twin_rng
from modint_training.data.collate import encode
from modint_training.data.sampler import Quotas, Slot
from modint_training.data.twins import fits, twin_kind
from modint_training.method.families import vision_of
from modint_training.recipe import TuneRecipe


def check_lengths(
    recipe: TuneRecipe,
    config: Any,
    processor: Any,
    found: DataSet,
    pools: Pools,
    steps: int,
    *,
    quiet: bool = False,
) -> None:
    """Refuse an example of which a row would stop the run of a base with this `config`: its clean view, or a
    twin of it that one of the `steps` will draw. No picture is decoded.

    Raises DataError with file, line and sample id. Shows a bar where it takes more than two seconds.
    """
    sized = vision_of(processor).sized
    places = tqdm(
        _places(recipe, pools, steps),
        "lengths",
        sum(map(len, pools.values())) + sum(1 for _ in _twinned(recipe, steps)),
        unit="row",
        leave=False,
        delay=2,
        disable=quiet,
    )
    for number, slot in places:
        sample = found.sample(number)
        item = _stood_in(sample, sized=sized)
        row = clean_view(item) if slot is None else _twin(recipe, slot, item)
        if row is not None:
            _check(recipe, config, processor, sample, row)


def check_validation(recipe: TuneRecipe, config: Any, processor: Any, found: DataSet, count: int) -> None:
    """The same of the first `count` labelled examples of each family that are looked at while training, and
    measured for the card: clean, and under every registered kind that fits."""
    sized = vision_of(processor).sized
    for sample in map(found.sample, numbers_of_each(found, count)):
        item = _stood_in(sample, sized=sized)
        twins = (perturb(item, name) for name in REGISTRY if fits(item, name))
        for row in (clean_view(item), *twins):
            _check(recipe, config, processor, sample, row)


def _places(recipe: TuneRecipe, pools: Pools, steps: int) -> Iterator[tuple[int, Slot | None]]:
    """The number of every example, then that of each slot of the run with a twin, which it is about."""
    return chain(
        ((number, None) for numbers in pools.values() for number in numbers),
        ((number_of(slot, pools, recipe.seed), slot) for slot in _twinned(recipe, steps)),
    )


def _twinned(recipe: TuneRecipe, steps: int) -> Iterator[Slot]:
    """The slots of the run whose family the recipe perturbs."""
    quotas, kinds = Quotas(recipe.quotas, recipe.batch), set(recipe.perturbations)
    families = {family for family in FAMILIES if kinds & {kind.name for kind in applicable(family)}}
    return (slot for step in range(steps) for slot in quotas.slots(step) if slot.family in families)


def _stood_in(sample: Sample, *, sized: bool) -> Item:
    """The item with pictures that show nothing, of the same sizes where a picture's tokens depend on it."""
    pictures = {
        name: Image.new("L", picture.size()) if sized else SOME_PICTURE
        for name, picture in sample.pictures.items()
    }
    return sample.item.replace(**pictures)


def _twin(recipe: TuneRecipe, slot: Slot, item: Item) -> Item | None:
    drawn = twin_kind(
        item, recipe.perturbations, recipe.controls, recipe.control_share, twin_rng(recipe, slot)
    )
    if drawn is None:
        return None
    name, seed = drawn
    # As many pixels of noise take their time, and only how many they are counts.
    return perturb(item, "black" if name == "noise" else name, seed=seed).replace(perturbation=name)


def _check(recipe: TuneRecipe, config: Any, processor: Any, sample: Sample, row: Item) -> None:
    try:
        encoded = encode(row, processor)
    except DataError as exc:
        raise sample.row.error(exc.problem.removeprefix(f"item {row.id}: "), row.id) from exc
    said = too_long(encoded, recipe)
    if said is None and row.image is not None:
        said = vision_of(processor).unread(processor, config, encoded.text)
    if said:
        what = "it" if row.perturbation == sample.item.perturbation else f"its twin, {row.perturbation},"
        raise sample.row.error(f"{what} {said}", row.id)
