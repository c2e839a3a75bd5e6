"""One step of training by hand, timed: what `transformers.Trainer` does between a batch and moved weights."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from modint_training.loop.trainer import Loss, wants_bf16
from modint_training.method.batch import Batch
from modint_training.recipe import TuneRecipe, load_recipe

# What turns the whole method into plain SFT: no twins, so neither consistency nor attack.
PLAIN_SFT = ("attack=null", "consistency=none", "perturbations=[]", "controls=[]")


def recipe_of(name: str, overrides: Sequence[str]) -> TuneRecipe:
    """A bundled recipe of the method, with some of its keys changed."""
    recipe = load_recipe(name, overrides)
    assert isinstance(recipe, TuneRecipe)
    return recipe


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def named(device: torch.device) -> str:
    """The device's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def optimizer_of(model: nn.Module, recipe: TuneRecipe) -> torch.optim.Optimizer:
    """AdamW over what is trained, fused, as the Trainer has it."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.lr,
        betas=(0.9, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batch: Batch,
    recipe: TuneRecipe,
    device: torch.device,
) -> tuple[float, int]:
    """Seconds from a batch on the host to moved weights, and the most bytes a GPU held in between."""
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    moved = {name: value.to(device) for name, value in batch.items()}
    with arithmetic(recipe, device):
        value = loss(model, moved)
    value.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], recipe.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronise(device)
    seconds = time.perf_counter() - began
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def arithmetic(recipe: TuneRecipe, device: torch.device) -> AbstractContextManager[Any]:
    """The precision that the recipe asks for."""
    if wants_bf16(recipe.precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
