"""What each module of an adapter contributes: a LoRA module whose B is 0 changes nothing."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

_PREFIX = "base_model.model."
_ALL_COUNTS = 48  # up to so many modules every number of kept ones is measured


def lora_modules(model: nn.Module) -> dict[str, Any]:
    """The modules with an adapter by their names in the model without it; none if it has no LoRA."""
    return {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if len(getattr(module, "lora_B", ()))
    }


@contextmanager
def switched_off(modules: Mapping[str, Any], names: Iterable[str]) -> Iterator[None]:
    """In the block, B of the modules of these names is 0."""
    weights = [part.weight for name in names for part in modules[name].lora_B.values()]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.data.zero_()
    try:
        yield
    finally:
        for weight, values in zip(weights, before, strict=True):
            weight.data.copy_(values)


def layer_of(name: str) -> int | None:
    """The layer in a module's name, which is the number in it; None without one."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else None


def contribution(whole: float, without: float, base: float) -> float:
    """The share of what an adapter gained that is lost without one module: 0 if it does nothing, 1 if it does
    all. ZeroDivisionError if the adapter gained nothing. Shares of all modules need not add up to 1."""
    return (whole - without) / (whole - base)


def counts_kept(modules: int) -> list[int]:
    """How many of the modules are kept, for a curve: every number of few, about thirty of many."""
    if modules <= _ALL_COUNTS:
        return list(range(modules + 1))
    return sorted({round(modules * (step / 30) ** 2) for step in range(31)})


def least_kept(kept: Sequence[int], restored: Sequence[float], share: float = 0.9) -> int | None:
    """The least number of modules from which on the kept ones restore at least this share of the gain; None
    if that never holds."""
    enough = None
    for count, value in sorted(zip(kept, restored, strict=True), reverse=True):
        if value < share:
            break
        enough = count
    return enough
