"""One run: a recipe from data to an exported folder with its figures, and the figures of such a folder."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from modint_guard.errors import AdapterError
from modint_guard.models import bundled
from modint_training.config import LoraRecipe, PretrainRecipe, load_recipe
from modint_training.export import check_target, export_adapter, export_base, run_record
from modint_training.lora import load_base, train_lora
from modint_training.predict import split_rows
from modint_training.pretrain import pretrain
from modint_training.trainer import seconds_trained

TEST_ITEMS = 800  # a condition in a card's tables: 400 a form, 200 a sub-task


def run_recipe(
    recipe: str, overrides: Sequence[str], *, output: Path | None, runs: Path, resume: str
) -> Path:
    """Train by a recipe and export what vLLM loads; returns the folder written (default RUNS/NAME/export)."""
    settings = load_recipe(recipe, overrides)
    folder = runs / settings.name
    target = output or folder / "export"
    check_target(target)
    if isinstance(settings, PretrainRecipe):
        model, processor, history = pretrain(settings, folder, resume=resume)
        export_base(model, processor, target, _record(settings, model, processor, history, folder))
    else:
        model, processor, history = train_lora(settings, folder, resume=resume)
        export_adapter(model, target, _record(settings, model, processor, history, folder))
    return target


def _record(
    settings: PretrainRecipe | LoraRecipe,
    model: Any,
    processor: Any,
    history: list[dict[str, float]],
    folder: Path,
) -> dict[str, Any]:
    print(f"evaluating on {TEST_ITEMS} test items a condition", file=sys.stderr, flush=True)
    rows = list(split_rows(model, processor, TEST_ITEMS))
    return run_record(settings, history, rows, seconds_trained(folder))


def adapter_folder(name: str) -> Path:
    """The folder of a bundled adapter's name or a PEFT folder; AdapterError where there is none."""
    folder = Path(name) if Path(name).is_dir() else bundled(name)
    if not (folder / "adapter_config.json").is_file():
        raise AdapterError(
            f"no adapter {name!r}: neither a PEFT folder nor a bundled adapter; train it first"
        )
    return folder


def evaluate(model: str, adapter: str | None, count: int) -> Iterator[dict[str, Any]]:
    """Rows of test accuracy of a local model, with or without an adapter; see `predict.split_rows`."""
    folder = adapter_folder(adapter) if adapter else None
    net, processor = load_base(model)
    return split_rows(PeftModel.from_pretrained(net, folder) if folder else net, processor, count)
