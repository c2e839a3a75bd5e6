"""Fine-tuning on clean and perturbed twins: an adapter on the language model, or the weights themselves."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from modint_guard.data import DataSet
from modint_guard.errors import ConfigError
from modint_guard.models import check_servable, check_tower_servable, located
from modint_training.data.batches import Pools, check_dealt_out, data_source, pools_of, twin_batches
from modint_training.data.lengths import check_lengths, check_validation
from modint_training.data.reading import read_examples
from modint_training.data.sampler import Source
from modint_training.data.twins import check_kinds
from modint_training.loop.plots import draw_curves
from modint_training.loop.predict import BASELINE_ITEMS
from modint_training.loop.trainer import Evaluation, StepLog, fit, seed_everything
from modint_training.loop.validation import Watched, figures_of, own_watched
from modint_training.method.ranks import is_first_process, rank, ranks
from modint_training.method.step import Meter, log_line, twin_loss
from modint_training.models.loading import load_base, loading_of, model_type_of, trainable
from modint_training.recipe import TuneRecipe
from modint_training.run_folder import check_taken_up, rows_hash, write_record
from modint_training.world import world_named


def tune(
    recipe: TuneRecipe, folder: Path, *, resume: str = "no", command: str | None = None
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Train by the recipe, with checkpoints, `log.jsonl` and `curves.png` under `folder`; returns (model,
    processor, validation figures by step). The model is PEFT's, or for `kind: full` the base itself.
    `command` is what was typed, for the record."""
    check_kinds(recipe.perturbations, controls=False)
    check_kinds(recipe.controls, controls=True)
    check_device(recipe, cuda=torch.cuda.is_available())
    check_reports(recipe)
    check_dealt_out(recipe, ranks())
    seed_everything(recipe.seed)
    check_served(recipe)
    rows = rows_hash(recipe)
    if resume == "auto":
        check_taken_up(folder, recipe, rows)
    base, processor = load_base(recipe.base, placed=False, **loading_of(recipe))
    model = trainable(base, recipe)
    source, steps = source_of(recipe, base.config, processor)
    meter = Meter()
    watched = watched_of(recipe, base.config, processor)
    evaluation = Evaluation(figures_of(watched, processor), recipe.evaluate_steps)
    log = StepLog(folder / "log.jsonl", lambda: log_line(meter.take()))
    if is_first_process():
        print(f"training {recipe.name} on twins", file=sys.stderr, flush=True)
        write_record(folder, recipe, rows, command=command)
    try:
        fit(
            model,
            twin_loss(recipe, meter),
            twin_batches(recipe, processor, source, rank=rank(), ranks=ranks()),
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
            log=log,
            micro_batches=recipe.micro_batches,
            adam_beta2=recipe.adam_beta2,
            adam_epsilon=recipe.adam_epsilon,
            report_to=list(recipe.report_to) or "none",
        )
    finally:
        if is_first_process():  # also of a run that was stopped
            draw_curves(folder / "log.jsonl", folder / "curves.png")
    return model, processor, evaluation.history


def check_served(recipe: TuneRecipe) -> None:
    """ConfigError for what vLLM could not serve, unless the recipe says that nobody wants to."""
    if recipe.servable:
        check_servable(model_type_of(recipe.base))
        if recipe.kind != "full" and recipe.scope != ("language",):
            check_tower_servable(located(recipe.base))


def check_device(recipe: TuneRecipe, *, cuda: bool) -> None:
    """ConfigError where 4-bit weights are wanted and there is nothing to compute with them."""
    if recipe.kind == "qlora" and not cuda:
        raise ConfigError(
            "kind: qlora needs a CUDA device for its 4-bit weights; on this machine use kind: lora"
        )
    if recipe.kind == "qlora" and find_spec("bitsandbytes") is None:
        raise ConfigError("kind: qlora needs bitsandbytes: pip install bitsandbytes")


def check_reports(recipe: TuneRecipe) -> None:
    """ConfigError where a place that is to be reported to is not installed."""
    for name in recipe.report_to:
        if find_spec(name) is None:
            raise ConfigError(f"report_to: {name} is not installed: pip install {name}, or leave it out")


def source_of(recipe: TuneRecipe, config: Any, processor: Any) -> tuple[Source, int]:
    """Where examples come from, and how many steps that makes; `config` is the base model's.

    Raises DataError for examples of one's own that the run could not be carried through with.
    """
    if world := world_named(recipe.data):
        assert recipe.steps is not None  # the recipe's own check
        return world.source(recipe), recipe.steps
    found = read_examples(recipe.data, recipe.reading)
    pools = pools_of(recipe, found)
    drawn = sum(map(len, pools.values()))
    if is_first_process():
        print(told_of(recipe, found, pools), file=sys.stderr, flush=True)
    steps = recipe.steps or max(1, round((recipe.epochs or 1) * drawn / recipe.batch))
    check_lengths(recipe, config, processor, found, pools, steps, quiet=not is_first_process())
    return data_source(recipe, found, pools), steps


def told_of(recipe: TuneRecipe, found: DataSet, pools: Pools) -> str:
    """How many examples are learnt from, how many of these without a label, and how many are left out."""
    drawn = {number for numbers in pools.values() for number in numbers}
    unlabelled = sum(
        number in drawn and not sample.item.labelled for number, sample in enumerate(found.samples())
    )
    said = f"{recipe.data}: {len(drawn)} examples"
    if unlabelled:
        said += f", {unlabelled} of them without a label (for the consistency loss only)"
    if left := len(found) - len(drawn):
        said += f"; {left} are left out: of unknown family, of no quota, or without label and twin"
    return said


def watched_of(recipe: TuneRecipe, config: Any, processor: Any) -> list[Watched]:
    """What is looked at while training: the world's validation split, or the recipe's own if it has one.

    Raises DataError for examples of one's own that a model of this `config` could not be asked.
    """
    if world := world_named(recipe.data):
        return world.watched(recipe.evaluate_items)
    if recipe.validation is None:
        return []
    found = read_examples(recipe.validation, recipe.reading)
    check_validation(recipe, config, processor, found, max(recipe.evaluate_items, BASELINE_ITEMS))
    return own_watched(found, recipe.evaluate_items, recipe.perturbations)


def warmup(recipe: TuneRecipe, steps: int) -> int:
    """Warm-up in steps."""
    return (
        recipe.warmup_steps if recipe.warmup_steps is not None else round((recipe.warmup_ratio or 0) * steps)
    )
