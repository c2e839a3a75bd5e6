"""One timed training step: what `transformers.Trainer` does between a batch and updated weights."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from modint_training.data.collate import on_device
from modint_training.loop.trainer import wants_bf16
from modint_training.method.batch import Batch
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import load_recipe

Loss = Callable[[nn.Module, Batch], Tensor]
# Overrides that turn the whole method into plain SFT: without twins there is neither consistency nor attack.
PLAIN_SFT = ("attack=null", "consistency=none", "perturbations=[]", "controls=[]")


def tune_recipe(name: str, overrides: Sequence[str]) -> TuneRecipe:
    """A bundled recipe of the method, with overrides."""
    recipe = load_recipe(name, overrides)
    assert isinstance(recipe, TuneRecipe)
    return recipe


def device_name(device: torch.device) -> str:
    """The GPU's model, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def optimizer_of(model: nn.Module, recipe: TuneRecipe) -> torch.optim.Optimizer:
    """AdamW over the trained weights, fused, as the Trainer uses it."""
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
    """Seconds from a batch on the host to updated weights, and the peak of a GPU's memory in between, in
    bytes (0 on a CPU)."""
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    moved = batch_on_device(batch, device)
    with autocast(recipe, device):
        value = loss(model, moved)
    value.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], recipe.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronise(device)
    seconds = time.perf_counter() - began
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def batch_on_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    return Batch(
        inputs=on_device(batch.inputs, device),
        labels=batch.labels.to(device),
        clean_row=batch.clean_row.to(device),
        attackable=batch.attackable.to(device),
        row_seeds=batch.row_seeds.to(device),
        counts=batch.counts.to(device),
    )


def autocast(recipe: TuneRecipe, device: torch.device) -> AbstractContextManager[Any]:
    """The precision that the recipe asks for."""
    if wants_bf16(recipe.precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
