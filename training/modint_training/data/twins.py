"""The perturbed twin of a training example, beside its clean view (`perturb.clean_view`)."""

import random
from collections.abc import Sequence

from modint_guard.data.item import Item
from modint_guard.data.perturb import REGISTRY, fitting, perturb
from modint_guard.errors import ConfigError


def twin(
    item: Item, kinds: Sequence[str], controls: Sequence[str], control_share: float, rng: random.Random
) -> Item | None:
    """A perturbed version of `item`: one of `kinds`, or with probability `control_share` one of `controls`.

    Without controls the adapter would learn "whatever the caption says is wrong". None where nothing fits the
    family: items that need both modalities are never perturbed.
    """
    drawn = twin_kind(item, kinds, controls, control_share, rng)
    return None if drawn is None else perturb(item, drawn[0], seed=drawn[1])


def twin_kind(
    item: Item, kinds: Sequence[str], controls: Sequence[str], control_share: float, rng: random.Random
) -> tuple[str, int] | None:
    """The name and the seed of the perturbation that makes `twin`."""
    harmful = [name for name in kinds if fits(item, name)]
    harmless = [name for name in controls if fits(item, name)]
    if not harmful:
        return None
    chosen = rng.choice(harmless if harmless and rng.random() < control_share else harmful)
    return chosen, rng.getrandbits(32)


def fits(item: Item, name: str) -> bool:
    """Whether a perturbation can be applied: its family does not need that modality, and the item has what it
    needs."""
    return any(kind.name == name for kind in fitting(item))


def check_kinds(names: Sequence[str], *, controls: bool) -> None:
    """Refuse unknown perturbations, and those held out for testing."""
    for name in names:
        if name not in REGISTRY:
            raise ConfigError(f"unknown perturbation {name!r}; known: {', '.join(REGISTRY)}")
        role = REGISTRY[name].role
        if role == "held_out":
            raise ConfigError(f"perturbation {name!r} is held out for testing and must not be trained on")
        if controls != (role == "control"):
            raise ConfigError(f"perturbation {name!r} is a {role} kind; list it under the other key")
