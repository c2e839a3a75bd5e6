"""One run, from its recipe to an exported folder with a record and a card; or the export of a run's
checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from modint_guard.data import first_of_each
from modint_guard.data.item import FAMILIES, Item
from modint_guard.data.perturb import applicable
from modint_guard.errors import ConfigError
from modint_guard.evaluation.results import command_line
from modint_training.data.reading import read_examples
from modint_training.locate.adapter import lora_modules
from modint_training.locate.smaller import Keep, keep_modules
from modint_training.loop.conflict import conflict_summary
from modint_training.loop.predict import BASELINE_ITEMS, flip_baseline
from modint_training.loop.trainer import Trained, figures_until, seconds_trained, whole_steps
from modint_training.method.passes import is_sharded
from modint_training.method.ranks import is_first_process, started_processes
from modint_training.models.card import Run
from modint_training.models.export import check_target, export_adapter, export_model
from modint_training.models.loading import load_base, loading_of
from modint_training.picturebook import base as picturebook
from modint_training.picturebook.recipe import PicturebookRecipe
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import Recipe, load_recipe
from modint_training.run_folder import check_resumable, read_record, recipe_in
from modint_training.run_record import run_record
from modint_training.tinyworld.card import base_card
from modint_training.tinyworld.pretrain import PHASES, pretrain
from modint_training.tinyworld.recipe import PretrainRecipe
from modint_training.tune import tune
from modint_training.world import world_named

_PHASES = {"pretrain": PHASES, "picturebook": picturebook.STAGES}
TEST_ITEMS = 800  # for each condition in a card's tables: 400 a form, 200 a sub-task


def run_recipe(
    name: str,
    overrides: Sequence[str],
    *,
    output: Path | None,
    runs: Path,
    resume: str,
    test_items: int = TEST_ITEMS,
) -> Path | None:
    """Train by the recipe `name` and export what vLLM loads; returns the folder (default RUNS/NAME/export).

    Returns None if this process writes none: of several processes only the first one exports, and none while
    the weights are sharded over all of them (FSDP), in which case the run ends with its checkpoint.
    `test_items`: TinyWorld's, for each condition in the card's tables.
    """
    recipe = load_recipe(name, overrides)
    command = command_line("train", name, *overrides)
    folder = runs / recipe.name
    target = output or folder / "export"
    check_target(target)
    if isinstance(recipe, PretrainRecipe):
        trained = pretrain(recipe, folder, resume=resume)
    elif isinstance(recipe, PicturebookRecipe):
        trained = picturebook.train_base(recipe, folder, resume=resume)
    else:
        trained = tune(recipe, folder, resume=resume, command=command)
        if is_sharded(trained.model):
            _report_sharded(recipe, folder)
            return None
    if not is_first_process():
        return None
    record = _record(recipe, trained, folder, test_items, command)
    if isinstance(recipe, PicturebookRecipe):
        picturebook.export_base(folder, target, record)
    else:
        _export(recipe, trained, target, record)
    return target


def _report_sharded(recipe: TuneRecipe, folder: Path) -> None:
    if is_first_process():
        print(
            f"{recipe.name} is trained, and its weights are sharded over {started_processes()} processes: "
            f"`modint-guard export {folder}` writes what vLLM loads, in one process",
            file=sys.stderr,
            flush=True,
        )


def export_run(
    run: Path,
    *,
    output: Path | None = None,
    step: int | None = None,
    keep: Keep | None = None,
    test_items: int = TEST_ITEMS,
) -> Path:
    """Export the last checkpoint of the run in folder `run`, or that of `step`, as the end of its training
    would have, or only the modules to `keep`, measured anew; returns the folder written (default RUN/export,
    or RUN/smaller). ConfigError without such a run, checkpoint or module."""
    recipe = recipe_in(run)
    target = output or run / ("smaller" if keep else "export")
    if keep and recipe.kind == "full":
        raise ConfigError(f"{run} trained whole weights: --keep-modules is of an adapter")
    check_target(target)
    check_resumable(run, recipe)  # the base may have changed since
    checkpoint = _checkpoint(run / recipe.kind, step)
    if recipe.kind == "full":
        model, processor = load_base(recipe.base, weights=checkpoint, **loading_of(recipe))
    else:
        base, processor = load_base(recipe.base, **loading_of(recipe))
        model = PeftModel.from_pretrained(base, checkpoint)
    kept = _kept(model, keep) if keep else {}
    trained = Trained(model, processor, figures_until(checkpoint))
    started = read_record(run)
    command = started.command if started else None
    until = int(checkpoint.name.rpartition("-")[2])  # a run that was stopped measured later steps, too
    record = {**_record(recipe, trained, run, test_items, command, until=until), **kept}
    _export(recipe, trained, target, record)
    return target


def _kept(model: Any, keep: Keep) -> dict[str, Any]:
    """Leave a PEFT model the modules to keep alone; what its record says of that."""
    present = list(lora_modules(model))
    names = keep.names(present)
    keep_modules(model, names)
    return {"kept_modules": names, "trained_modules": len(present)}


def _export(recipe: PretrainRecipe | TuneRecipe, trained: Trained, target: Path, record: Run) -> None:
    if isinstance(recipe, PretrainRecipe):
        export_model(trained.model, trained.processor, target, record, card=base_card)
    elif recipe.kind == "full":
        export_model(trained.model, trained.processor, target, record)
    else:
        export_adapter(trained.model, target, record)


def _checkpoint(folder: Path, step: int | None) -> Path:
    steps = whole_steps(folder)
    if not steps:
        raise ConfigError(f"{folder} holds no whole checkpoint: train first")
    if step is not None and step not in steps:
        raise ConfigError(
            f"{folder} holds no checkpoint of step {step}, only of {', '.join(map(str, steps))}: name one"
        )
    return folder / f"checkpoint-{steps[-1] if step is None else step}"


def _record(
    recipe: Recipe,
    trained: Trained,
    folder: Path,
    test_items: int,
    command: str | None,
    *,
    until: int | None = None,
) -> Run:
    print("evaluating on test items", file=sys.stderr, flush=True)
    rows = _test_rows(recipe, trained, test_items)
    items = _baseline_items(recipe, test_items)
    baseline = flip_baseline(trained.model, trained.processor, items) if items else None
    phases = _PHASES.get(recipe.kind, (recipe.kind,))
    seconds = seconds_trained(*(folder / phase for phase in phases))
    started = read_record(folder)
    rows_sha256 = started.data_sha256 if started else None
    measures_conflict = isinstance(recipe, TuneRecipe) and recipe.conflict
    conflict = conflict_summary(folder, until) if measures_conflict else None
    return run_record(
        recipe, trained.history, rows, seconds, baseline, rows_sha256, command=command, conflict=conflict
    )


def _baseline_items(recipe: Recipe, test_items: int) -> list[Item]:
    """The items that an adapter's flip baseline is measured on: a world's test split, or validation
    examples."""
    if not isinstance(recipe, TuneRecipe):
        return []
    count = min(test_items, BASELINE_ITEMS)
    if world := world_named(recipe.data):
        count = min(count, world.test_items)
        return [item for family in FAMILIES[:2] for item in world.items(family, "test", count)]
    if recipe.validation is None:
        return []
    items = first_of_each(read_examples(recipe.validation, recipe.reading), count)
    return [item for item in items if applicable(item.family)]


def _test_rows(recipe: Recipe, trained: Trained, test_items: int) -> list[dict[str, Any]]:
    """Rows of accuracy on a world's test split; for a data set, those of the last evaluation of its
    validation examples."""
    world = world_named(recipe.data)
    if world is not None:
        count = min(test_items, world.test_items)
        return list(world.test_rows(trained.model, trained.processor, count))
    whole = {"held_out": "no", "task": "all", "form": "all"}
    figures = (trained.history[-1] if trained.history else {}).items()
    return [
        {**dict(zip(("family", "perturbation"), name.split("/"), strict=True)), **whole, "accuracy": value}
        for name, value in figures
        if name.count("/") == 1  # not step, loss and flips
    ]
