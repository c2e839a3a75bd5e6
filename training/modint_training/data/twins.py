"""The perturbed twin of a training example; it is trained on beside the example's clean view
(`perturb.clean_view`)."""

import random
from collections.abc import Sequence

from modint_guard.data.item import Item
from modint_guard.data.perturb import REGISTRY, fitting, perturb
from modint_guard.errors import ConfigError
from modint_training.recipe import TuneRecipe


def twin(recipe: TuneRecipe, item: Item, rng: random.Random) -> Item | None:
    """A perturbed version of `item`, drawn by `twin_kind`; None if no perturbation of the recipe fits."""
    drawn = twin_kind(recipe, item, rng)
    return None if drawn is None else perturb(item, drawn[0], seed=drawn[1])


def twin_kind(recipe: TuneRecipe, item: Item, rng: random.Random) -> tuple[str, int] | None:
    """The name and seed of a twin's perturbation: one of the recipe's perturbations or, with probability
    `control_share`, one of its controls. None if no perturbation fits: items that need both modalities are
    never perturbed.

    Without controls an adapter would learn that whatever the caption says is wrong.
    """
    harmful = [name for name in recipe.perturbations if fits(item, name)]
    harmless = [name for name in recipe.controls if fits(item, name)]
    if not harmful:
        return None
    chosen = rng.choice(harmless if harmless and rng.random() < recipe.control_share else harmful)
    return chosen, rng.getrandbits(32)


def fits(item: Item, name: str) -> bool:
    """Whether the perturbation `name` can be applied to the item (`perturb.fitting`)."""
    return any(kind.name == name for kind in fitting(item))


def check_kinds(names: Sequence[str], *, controls: bool) -> None:
    """ConfigError for unknown perturbations, those held out for testing, and those of the other key."""
    for name in names:
        if name not in REGISTRY:
            raise ConfigError(f"unknown perturbation {name!r}; known: {', '.join(REGISTRY)}")
        role = REGISTRY[name].role
        if role == "held_out":
            raise ConfigError(f"perturbation {name!r} is held out for testing and must not be trained on")
        if controls != (role == "control"):
            raise ConfigError(f"perturbation {name!r} is a {role} kind; list it under the other key")
