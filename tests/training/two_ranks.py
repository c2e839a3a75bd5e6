"""One process of a distributed run: trains a small adapter and writes what came of it, and says how many rows
it looked at on the way. Started by test_distributed.py with RANK and WORLD_SIZE in its environment."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import LlavaForConditionalGeneration

from modint_training.method.ranks import rank
from modint_training.tune import tune
from tests.training.small import lora_recipe

ATTACK = (
    "{kind: pgd, step: normalised, epsilon: 0.2, relative: true, alpha: 0.2, steps: 1, mask: span, weight: 1}"
)


def main(base: str, folder: str) -> None:
    """Two steps by the whole method."""
    recipe = lora_recipe(
        base, f"attack={ATTACK}", "lr=0.01", "quotas=[1, 1, 2]", "batch=8", "evaluate_items=2"
    )
    rows = 0

    def count(module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        nonlocal rows
        if isinstance(module, LlavaForConditionalGeneration) and not module.training:
            rows += len(kwargs["input_ids"])

    register_module_forward_hook(count, with_kwargs=True)
    model = tune(recipe, Path(folder)).model
    learnt = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    torch.save(learnt, Path(folder) / f"rank{rank()}.pt")
    print(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
