"""Fine-tuning on clean and perturbed twins: of an adapter on the language model, or of the weights
themselves."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from modint_guard.data import DataSet
from modint_guard.errors import ConfigError
from modint_guard.models import check_servable, check_tower_servable, located
from modint_training.data.batches import Dress, Pools, check_divides, data_source, pools_of, twin_batches
from modint_training.data.lengths import check_lengths, check_validation
from modint_training.data.reading import read_examples
from modint_training.data.sampler import ItemSource
from modint_training.data.twins import check_kinds
from modint_training.loop.conflict import LOG, ConflictLog, conflict_measure, conflict_records
from modint_training.loop.plots import draw_conflict, draw_curves
from modint_training.loop.predict import BASELINE_ITEMS
from modint_training.loop.trainer import Evaluation, StepLog, Trained, fit, seed_everything
from modint_training.loop.validation import ValidationSet, validation_figures, validation_sets
from modint_training.method.ranks import is_first_process, rank, started_processes
from modint_training.method.step import StepMeter, log_line, twin_loss
from modint_training.models.loading import load_base, loading_of, model_type_of, trainable
from modint_training.recipe import TuneRecipe
from modint_training.run_folder import check_resumable, rows_digest, write_record
from modint_training.world import world_named


def tune(recipe: TuneRecipe, folder: Path, *, resume: str = "no", command: str | None = None) -> Trained:
    """Train by the recipe, with checkpoints, `log.jsonl` and `curves.png` under `folder`, and with
    `conflict.jsonl` and `conflict.png` if it measures that; returns PEFT's model or, for `kind: full`, the
    base itself.

    `resume="auto"` continues from the last checkpoint there. `command` is what was typed, for the record.
    Raises ConfigError or DataError, before the first step, for a run that could not be completed.
    """
    check_runnable(recipe)
    seed_everything(recipe.seed)
    rows_sha256 = rows_digest(recipe)
    if resume == "auto":
        check_resumable(folder, recipe, rows_sha256)
    base, processor = load_base(recipe.base, placed=False, **loading_of(recipe))
    model = trainable(base, recipe)
    source, steps = training_source(recipe, base.config, processor)
    watched = watched_sets(recipe, base.config, processor)
    evaluation = Evaluation(validation_figures(watched, processor), recipe.evaluate_steps)
    if is_first_process():
        print(f"training {recipe.name} on twins", file=sys.stderr, flush=True)
        write_record(folder, recipe, rows_sha256, command=command)
    try:
        _fit_twins(recipe, model, processor, source, steps, folder, resume, evaluation)
    finally:
        if is_first_process():  # also if the run was stopped
            draw_curves(folder / "log.jsonl", folder / "curves.png")
            if recipe.conflict:
                draw_conflict(conflict_records(folder), folder / "conflict.png")
    return Trained(model, processor, evaluation.history)


def _fit_twins(
    recipe: TuneRecipe,
    model: Any,
    processor: Any,
    source: ItemSource,
    steps: int,
    folder: Path,
    resume: str,
    evaluation: Evaluation,
) -> None:
    meter, watching = StepMeter(), []
    if recipe.conflict:
        measure = conflict_measure(recipe, processor, source, steps, dress_of(recipe))
        watching.append(ConflictLog(folder / LOG, measure, recipe.conflict.steps))
    fit(
        model,
        twin_loss(recipe, meter),
        twin_batches(
            recipe,
            processor,
            source,
            rank=rank(),
            ranks=started_processes(),
            dress=dress_of(recipe),
            steps=steps,
        ),
        folder=folder / recipe.kind,
        steps=steps,
        lr=recipe.lr,
        warmup_steps=warmup(recipe, steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        precision=recipe.precision,
        seed=recipe.seed,
        checkpoint_minutes=recipe.checkpoint_minutes,
        resume=resume,
        evaluation=evaluation,
        callbacks=watching,
        log=StepLog(folder / "log.jsonl", lambda: log_line(meter.take())),
        micro_batches=recipe.micro_batches,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        report_to=list(recipe.report_to) or "none",
    )


def check_runnable(recipe: TuneRecipe) -> None:
    """ConfigError for a recipe that cannot be trained on this machine, or whose result vLLM could not
    serve."""
    check_kinds(recipe.perturbations, controls=False)
    check_kinds(recipe.controls, controls=True)
    check_device(recipe, cuda=torch.cuda.is_available())
    check_reports(recipe)
    check_divides(recipe, started_processes())
    check_balance(recipe, started_processes())
    check_served(recipe)


def check_balance(recipe: TuneRecipe, processes: int) -> None:
    """ConfigError for PCGrad in several processes, each of which has a part of every batch alone."""
    if recipe.balance == "pcgrad" and processes > 1:
        raise ConfigError(
            f"balance: pcgrad compares the gradients of whole batches, and {processes} processes share them "
            "out: train in one process"
        )


def check_served(recipe: TuneRecipe) -> None:
    """ConfigError for a model or adapter that vLLM could not serve, unless the recipe says `servable:
    false`."""
    if recipe.servable:
        check_servable(model_type_of(recipe.base))
        if recipe.kind != "full" and recipe.scope != ("language",):
            check_tower_servable(located(recipe.base))


def check_device(recipe: TuneRecipe, *, cuda: bool) -> None:
    """ConfigError for 4-bit weights without the GPU or the library that computes with them."""
    if recipe.kind == "qlora" and not cuda:
        raise ConfigError(
            "kind: qlora needs a CUDA device for its 4-bit weights; on this machine use kind: lora"
        )
    if recipe.kind == "qlora" and find_spec("bitsandbytes") is None:
        raise ConfigError("kind: qlora needs bitsandbytes: pip install bitsandbytes")


def check_reports(recipe: TuneRecipe) -> None:
    """ConfigError for a `report_to` that is not installed."""
    for name in recipe.report_to:
        if find_spec(name) is None:
            raise ConfigError(f"report_to: {name} is not installed: pip install {name}, or leave it out")


def training_source(recipe: TuneRecipe, config: Any, processor: Any) -> tuple[ItemSource, int]:
    """The source of training examples, and the number of steps; `config` is the base model's.

    Raises DataError for examples of a data set that would stop the run.
    """
    if world := world_named(recipe.data):
        assert recipe.steps is not None  # checked by the recipe
        return world.source(recipe), recipe.steps
    data = read_examples(recipe.data, recipe.reading)
    pools = pools_of(recipe, data)
    drawn = sum(map(len, pools.values()))
    if is_first_process():
        print(data_summary(recipe, data, pools), file=sys.stderr, flush=True)
    steps = recipe.steps or max(1, round((recipe.epochs or 1) * drawn / recipe.batch))
    check_lengths(recipe, config, processor, data, pools, steps, quiet=not is_first_process())
    return data_source(recipe, data, pools), steps


def dress_of(recipe: TuneRecipe) -> Dress | None:
    """How the recipe's world places the context of twins; None for a data set, whose contexts stay."""
    world = world_named(recipe.data)
    return world.dress if world else None


def data_summary(recipe: TuneRecipe, data: DataSet, pools: Pools) -> str:
    """How many examples are trained on, how many of these have no label, and how many are left out."""
    drawn = {number for numbers in pools.values() for number in numbers}
    unlabelled = sum(
        number in drawn and not sample.item.labelled for number, sample in enumerate(data.samples())
    )
    summary = f"{recipe.data}: {len(drawn)} examples"
    if unlabelled:
        summary += f", {unlabelled} of them without a label (for the consistency loss only)"
    if left_out := len(data) - len(drawn):
        summary += f"; {left_out} are left out: of unknown family, of no quota, or without label and twin"
    return summary


def watched_sets(recipe: TuneRecipe, config: Any, processor: Any) -> list[ValidationSet]:
    """What is measured while training: the world's validation split or the recipe's, if it names one.

    Raises DataError for examples that a model with this `config` could not read.
    """
    if world := world_named(recipe.data):
        return world.validation(recipe.evaluate_items)
    if recipe.validation is None:
        return []
    data = read_examples(recipe.validation, recipe.reading)
    check_validation(recipe, config, processor, data, max(recipe.evaluate_items, BASELINE_ITEMS))
    return validation_sets(data, recipe.evaluate_items, recipe.perturbations)


def warmup(recipe: TuneRecipe, steps: int) -> int:
    """The number of warm-up steps."""
    return (
        recipe.warmup_steps if recipe.warmup_steps is not None else round((recipe.warmup_ratio or 0) * steps)
    )
