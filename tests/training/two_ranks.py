"""One process of a distributed run: trains a small adapter and writes what came of it. Started by
test_distributed.py with RANK and WORLD_SIZE in its environment."""

import sys
from pathlib import Path

import torch

from modint_training.tune import tune
from tests.training.small import lora_recipe

ATTACK = (
    "{kind: pgd, step: normalised, epsilon: 0.2, relative: true, alpha: 0.2, steps: 1, mask: span, weight: 1}"
)


def main(base: str, folder: str, out: str) -> None:
    """Two steps by the whole method."""
    recipe = lora_recipe(
        base, f"attack={ATTACK}", "lr=0.01", "quotas=[1, 1, 2]", "batch=8", "evaluate_items=2"
    )
    model, _, _ = tune(recipe, Path(folder))
    torch.save({name: value for name, value in model.state_dict().items() if "lora_" in name}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
