"""One run: a recipe from data to an exported folder with its figures, and the figures of such a folder."""

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
from modint_training.loop.predict import BASELINE_ITEMS, flip_baseline
from modint_training.loop.trainer import figures_of, seconds_trained, whole_steps
from modint_training.method.passes import dealt_out
from modint_training.method.ranks import is_first_process, ranks
from modint_training.models.export import check_target, export_adapter, export_base, export_tuned
from modint_training.models.loading import load_base, loading_of
from modint_training.recipe import TINYWORLD, PretrainRecipe, Recipe, TuneRecipe, load_recipe
from modint_training.run_folder import check_taken_up, command_of, recipe_of, rows_hash_in, run_record
from modint_training.tinyworld.pretrain import PHASES, pretrain
from modint_training.tune import tune
from modint_training.world import world_named

TEST_ITEMS = 800  # a condition in a card's tables: 400 a form, 200 a sub-task


def run_recipe(
    recipe: str,
    overrides: Sequence[str],
    *,
    output: Path | None,
    runs: Path,
    resume: str,
    test_items: int = TEST_ITEMS,
) -> Path | None:
    """Train by a recipe and export what vLLM loads; returns the folder written (default RUNS/NAME/export).

    None where this process writes none: of several the first one does, and none while the weights are dealt
    out to all of them (FSDP), which ends with the checkpoint. `test_items`: of TinyWorld, a condition in the
    card's tables.
    """
    settings = load_recipe(recipe, overrides)
    command = command_line("train", recipe, *overrides)
    folder = runs / settings.name
    target = output or folder / "export"
    check_target(target)
    if isinstance(settings, PretrainRecipe):
        model, processor, history = pretrain(settings, folder, resume=resume)
        record = _record(settings, model, processor, history, folder, test_items, command)
        export_base(model, processor, target, record)
        return target
    model, processor, history = tune(settings, folder, resume=resume, command=command)
    if dealt_out(model):
        if is_first_process():
            print(
                f"{settings.name} is trained, and its weights lie in shards on {ranks()} processes: one alone"
                f" writes what vLLM loads with `modint-guard export {folder}`",
                file=sys.stderr,
                flush=True,
            )
        return None
    if not is_first_process():
        return None
    record = _record(settings, model, processor, history, folder, test_items, command)
    _export(settings, model, processor, target, record)
    return target


def export_run(
    run: Path, *, output: Path | None = None, step: int | None = None, test_items: int = TEST_ITEMS
) -> Path:
    """Export a run's last checkpoint, or that of `step`, as the end of its training would have; returns the
    folder written (default RUN/export). Raises ConfigError where there is no such run or checkpoint."""
    settings = recipe_of(run)
    target = output or run / "export"
    check_target(target)
    check_taken_up(run, settings)  # the base may have changed since
    checkpoint = _checkpoint(run / settings.kind, step)
    if settings.kind == "full":
        model, processor = load_base(settings.base, weights=checkpoint, **loading_of(settings))
    else:
        net, processor = load_base(settings.base, **loading_of(settings))
        model = PeftModel.from_pretrained(net, checkpoint)
    history = figures_of(checkpoint)
    record = _record(settings, model, processor, history, run, test_items, command_of(run))
    _export(settings, model, processor, target, record)
    return target


def _export(settings: TuneRecipe, model: Any, processor: Any, target: Path, record: dict[str, Any]) -> None:
    if settings.kind == "full":
        export_tuned(model, processor, target, record)
    else:
        export_adapter(model, target, record)


def _checkpoint(folder: Path, step: int | None) -> Path:
    known = whole_steps(folder)
    if not known:
        raise ConfigError(f"{folder} holds no whole checkpoint: train first")
    if step is not None and step not in known:
        raise ConfigError(
            f"{folder} holds no checkpoint of step {step}, only of {', '.join(map(str, known))}: name one"
        )
    return folder / f"checkpoint-{known[-1] if step is None else step}"


def _record(
    settings: Recipe,
    model: Any,
    processor: Any,
    history: list[dict[str, float]],
    folder: Path,
    test_items: int,
    command: str | None,
) -> dict[str, Any]:
    print("evaluating on test items", file=sys.stderr, flush=True)
    rows = _rows(settings, model, processor, history, test_items)
    asked = _typical(settings, test_items)
    baseline = flip_baseline(model, processor, asked) if asked else None
    phases = PHASES if isinstance(settings, PretrainRecipe) else (settings.kind,)
    seconds = seconds_trained(*(folder / phase for phase in phases))
    return run_record(settings, history, rows, seconds, baseline, rows_hash_in(folder), command=command)


def _typical(settings: Recipe, test_items: int) -> list[Item]:
    """What an adapter's flip baseline is measured on: a world's test split, or validation examples."""
    if isinstance(settings, PretrainRecipe):
        return []
    count = min(test_items, BASELINE_ITEMS)
    if world := world_named(settings.data):
        return [item for family in FAMILIES[:2] for item in world.items(family, "test", count)]
    if settings.validation is None:
        return []
    found = first_of_each(read_examples(settings.validation, settings.reading), count)
    return [item for item in found if applicable(item.family)]


def _rows(
    settings: Recipe, model: Any, processor: Any, history: list[dict[str, float]], test_items: int
) -> list[dict[str, Any]]:
    """A world's test split; of a data set of one's own, the last look at its validation examples."""
    world = world_named(TINYWORLD if isinstance(settings, PretrainRecipe) else settings.data)
    if world is not None:
        return list(world.test_rows(model, processor, test_items))
    whole = {"held_out": "no", "task": "all", "form": "all"}
    seen = (history[-1] if history else {}).items()
    return [
        {**dict(zip(("family", "perturbation"), name.split("/"), strict=True)), **whole, "accuracy": value}
        for name, value in seen
        if name.count("/") == 1  # beside step, loss and flips
    ]
