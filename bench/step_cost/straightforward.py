"""The method's loss written the straightforward way, to measure `modint_training.method.step` against.

It is the same loss of the same rows, up to rounding, and differs in four ways only, which are those of the
method's reference code (arXiv 2505.19616): every pass is the whole model, vision tower included; rows that
need both modalities are attacked too, under an empty mask; logits are made of every position, and read in
float32; rows are padded to one length for the whole run.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.step_cost.stepping import Loss
from modint_training.method.attack import Attack, run_attack
from modint_training.method.batch import Batch, Inputs
from modint_training.method.families import ModelFamily
from modint_training.method.labels import IGNORED
from modint_training.method.masks import flat_indices, predicting_mask
from modint_training.method.passes import Outputs, hooked, unwrap
from modint_training.method.step import AttackedPass, LossWeights, denominators, twin_inconsistency


def straightforward_loss(family: ModelFamily, weights: LossWeights, attack: Attack) -> Loss:
    """The loss of a batch that `padded` has lengthened, as a function of model and batch. For LLaVA, PGD and
    consistency of logits."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        labels, per_count = batch.labels, denominators(batch.counts)
        predicting = predicting_mask(labels)
        embeds, logits = full_pass(model, family, batch.inputs)
        outputs = Outputs(logits[predicting], logits[predicting])
        sft = summed_cross_entropy(logits, labels) / per_count[0]
        cons = twin_inconsistency(outputs, batch.clean_row, predicting, weights)

        rows = perturbed_or_alone(batch.clean_row)
        inputs = inputs_of_rows(batch.inputs, rows, image_token_id(model))
        attackable = batch.attackable[rows]
        attacked_labels = torch.where(attackable.any(-1, keepdim=True), labels[rows], IGNORED)

        def forward(changed: Tensor) -> Outputs:
            everywhere = full_pass(model, family, inputs, changed)[1]
            return Outputs(everywhere, everywhere)

        def objective(attacked: Outputs) -> Tensor:
            return summed_cross_entropy(attacked.logits, attacked_labels)

        seeds = batch.row_seeds[rows].tolist()
        (attacked,) = run_attack(forward, objective, embeds[rows], attackable, seeds, attack).passes
        is_attacked = attackable.any(-1)
        clean = logits[predicting][flat_indices(batch.clean_row[rows][is_attacked], predicting)]
        twins = attacked.logits[is_attacked][predicting[rows][is_attacked]]
        attacked_pass = AttackedPass(
            objective(attacked), Outputs(clean, clean), Outputs(twins, twins), passes=1
        )
        cons = cons + attacked_pass.inconsistency(weights)
        adv, cons = attacked_pass.objective / per_count[1], cons / per_count[2]
        return weights.task * sft + weights.adversarial * adv + weights.consistency * cons

    return loss


def full_pass(
    model: nn.Module, family: ModelFamily, inputs: Inputs, embeds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The decoder's input embeddings  # (B, L, D), and logits of every position  # (B, L, V). If `embeds` are
    given, they replace those that the model made."""
    recorded: list[Tensor] = []

    def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recorded.append(kwargs["inputs_embeds"].float() if embeds is None else embeds)
        return args, {**kwargs, "inputs_embeds": recorded[0]}

    with hooked(unwrap(model).get_submodule(family.decoder), put, with_kwargs=True):
        logits = model(**inputs, use_cache=False).logits
    return recorded[0], logits


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over all positions, most of which are ignored  # (B, L, V), (B, L) -> ()."""
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def perturbed_or_alone(clean_row: Tensor) -> Tensor:
    """The rows that the reference code attacks: twins, and rows that have none, whose mask is empty
    # (B,) -> (R,)."""
    every = torch.arange(len(clean_row), device=clean_row.device)
    return ((clean_row >= 0) | ~torch.isin(every, clean_row)).nonzero().squeeze(-1)


def inputs_of_rows(inputs: Mapping[str, Tensor], rows: Tensor, image_token: int) -> dict[str, Tensor]:
    """The model's inputs for some of the rows, with their pictures."""
    pictured = (inputs["input_ids"] == image_token).any(-1)
    picture = pictured.cumsum(0) - 1  # of each row that has one
    chosen = {name: inputs[name][rows] for name in ("input_ids", "attention_mask")}
    if pictured[rows].any():
        chosen["pixel_values"] = inputs["pixel_values"][picture[rows][pictured[rows]]]
    return chosen


def image_token_id(model: nn.Module) -> int:
    """The id of the picture's placeholder, by the model's configuration."""
    return int(unwrap(model).config.image_token_id)


def padded(batch: Batch, length: int, pad_token: int) -> Batch:
    """The batch with every row padded to `length`; ValueError if one is longer."""
    extra = length - batch.labels.shape[1]
    if extra < 0:
        raise ValueError(f"rows of {length - extra} tokens do not fit into {length}")

    def longer(rows: Tensor, filler: int) -> Tensor:
        return F.pad(rows, (0, extra), value=filler)

    inputs = {
        **batch.inputs,
        "input_ids": longer(batch.inputs["input_ids"], pad_token),
        "attention_mask": longer(batch.inputs["attention_mask"], 0),
    }
    labels, attackable = longer(batch.labels, IGNORED), longer(batch.attackable, False)
    return replace(batch, inputs=inputs, labels=labels, attackable=attackable)
