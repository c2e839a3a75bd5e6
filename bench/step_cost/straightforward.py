"""The method's loss written the straightforward way, to measure `modint_training.method.step` against.

It is the same loss of the same rows, to rounding, and differs in four things only, which are those of the
method's reference code (arXiv 2505.19616): every pass is the whole model, vision tower included; rows that
need both modalities are attacked too, under an empty mask; logits are made of every position, and read in
float32; rows are padded to one length for the whole run.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modint_training.loop.trainer import Loss
from modint_training.method.attack import Attack, attack
from modint_training.method.batch import PLAN, Batch
from modint_training.method.families import ModelFamily
from modint_training.method.labels import IGNORED
from modint_training.method.masks import predicting_mask, tokens_of
from modint_training.method.passes import Read, bare, hooked
from modint_training.method.step import Harmed, Weights, shares, twin_inconsistency


def straightforward_loss(family: ModelFamily, weights: Weights, how: Attack) -> Loss:
    """`loss(model, batch)` of a batch that `padded` has made longer. For LLaVA, PGD and consistency of
    logits."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name not in PLAN}
        labels, share = batch["labels"], shares(batch["counts"])
        where = predicting_mask(labels)
        embeds, logits = everything(model, family, inputs)
        read = Read(logits[where], logits[where])
        sft = summed_cross_entropy(logits, labels) / share[0]
        cons = twin_inconsistency(read, batch["clean_row"], where, weights)

        rows = perturbed_or_alone(batch["clean_row"])
        chosen = only(inputs, rows, image_token_id(model))
        attackable = batch["attackable"][rows]
        told = torch.where(attackable.any(-1, keepdim=True), labels[rows], IGNORED)

        def forward(changed: Tensor) -> Read:
            everywhere = everything(model, family, chosen, changed)[1]
            return Read(everywhere, everywhere)

        def harm(now: Read) -> Tensor:
            return summed_cross_entropy(now.logits, told)

        seeds = batch["row_seeds"][rows].tolist()
        (now,) = attack(forward, harm, embeds[rows], attackable, seeds, how).reads
        harmed = attackable.any(-1)
        clean = logits[where][tokens_of(batch["clean_row"][rows][harmed], where)]
        twins = now.logits[harmed][where[rows][harmed]]
        found = Harmed(harm(now), Read(clean, clean), Read(twins, twins), passes=1)
        cons = cons + found.inconsistency(weights)
        adversarial, consistent = found.harm / share[1], cons / share[2]
        return weights.task * sft + weights.adversarial * adversarial + weights.consistency * consistent

    return loss


def everything(
    model: nn.Module, family: ModelFamily, inputs: Mapping[str, Tensor], embeds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The embeddings that the decoder got  # (B, L, D), and logits of every position  # (B, L, V). Given
    `embeds` take the place of those that were made."""
    given: list[Tensor] = []

    def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given.append(kwargs["inputs_embeds"].float() if embeds is None else embeds)
        return args, {**kwargs, "inputs_embeds": given[0]}

    with hooked(bare(model).get_submodule(family.decoder), put, with_kwargs=True):
        logits = model(**inputs, use_cache=False).logits
    return given[0], logits


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Over all positions, of which most are ignored  # (B, L, V), (B, L) -> ()."""
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def perturbed_or_alone(clean_row: Tensor) -> Tensor:
    """The rows the reference code attacks: twins, and rows that have none, whose mask is empty  # (B,)."""
    every = torch.arange(len(clean_row), device=clean_row.device)
    return ((clean_row >= 0) | ~torch.isin(every, clean_row)).nonzero().squeeze(-1)


def only(inputs: Mapping[str, Tensor], rows: Tensor, image_token: int) -> dict[str, Tensor]:
    """The model's inputs for some of the rows, with their pictures."""
    pictured = (inputs["input_ids"] == image_token).any(-1)
    picture = pictured.cumsum(0) - 1  # of each row that has one
    chosen = {name: inputs[name][rows] for name in ("input_ids", "attention_mask")}
    if pictured[rows].any():
        chosen["pixel_values"] = inputs["pixel_values"][picture[rows][pictured[rows]]]
    return chosen


def image_token_id(model: nn.Module) -> int:
    """The placeholder's id, as the model's configuration has it."""
    return int(bare(model).config.image_token_id)


def padded(batch: Batch, length: int, pad_token: int) -> Batch:
    """The batch with every row made `length` long; ValueError where one is longer."""
    extra = length - batch["input_ids"].shape[1]
    if extra < 0:
        raise ValueError(f"rows of {length - extra} tokens do not fit into {length}")
    fillers = {"input_ids": pad_token, "attention_mask": 0, "labels": IGNORED, "attackable": False}
    longer = {name: F.pad(batch[name], (0, extra), value=filler) for name, filler in fillers.items()}
    return {**batch, **longer}
