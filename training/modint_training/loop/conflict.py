"""Gradient conflict while an adapter trains: measured every few steps, written as a line for each module."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modint_guard.data.item import Family
from modint_guard.errors import ConfigError
from modint_training.data.batches import Dress, Example, batch_of, step_examples
from modint_training.data.collate import on_device
from modint_training.data.sampler import ItemSource
from modint_training.loop.trainer import append_lines, cut_log, read_log
from modint_training.method.batch import Batch
from modint_training.method.conflict import COMPARED, Conflict, GradientSums, Summary, summary_of
from modint_training.method.passes import is_sharded
from modint_training.method.ranks import rank, started_processes
from modint_training.recipe import TuneRecipe

LOG = "conflict.jsonl"  # in a run's folder
Measure = Callable[[nn.Module, int], list[Conflict]]  # of a model after a step


class ConflictLog(TrainerCallback):
    """A file with one JSON line (`conflict.Conflict`) for each module, contrast and window; a window begins
    every `every` steps. A resumed run first removes the lines after its checkpoint. The step's seconds in a
    `StepLog` include the measuring."""

    def __init__(self, file: Path, measure: Measure, every: int) -> None:
        self.file = file
        self.measure = measure
        self.every = every

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        if is_sharded(kw["model"]):
            raise ConfigError("conflict: gradients of weights that are sharded over processes are not read")
        if state.is_world_process_zero:
            cut_log(self.file, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        if state.global_step % self.every:
            return
        records = self.measure(kw["model"], state.global_step)  # on every rank: it sums over the ranks
        if state.is_world_process_zero:
            append_lines(self.file, records)


def conflict_measure(
    recipe: TuneRecipe, processor: Any, source: ItemSource, steps: int, dress: Dress | None
) -> Measure:
    """Measures on batches that would come after the `steps` of the run, new ones for every window, without
    dropout and with twins of the harmful kinds alone. Neither weights nor random numbers of the training
    change."""
    assert recipe.conflict is not None
    every, count = recipe.conflict.steps, recipe.conflict.batches
    harmful = recipe.model_copy(update={"control_share": 0.0, "attack": None, "order": "joint"})
    examples = step_examples(harmful, source, rank=rank(), ranks=started_processes(), dress=dress)

    def measure(model: nn.Module, step: int) -> list[Conflict]:
        training, sums = model.training, GradientSums(model)
        device = next(model.parameters()).device
        model.eval()
        shown: Counter[Family] = Counter()
        first = steps + step // every * count
        for number in range(first, first + count):
            for family, half, chosen in _halves(examples(number), shown):
                sums.add(family, half, _placed(batch_of(chosen, processor, harmful), device))
        model.train(training)
        return sums.conflicts(step)

    return measure


def _halves(
    examples: Sequence[Example], shown: Counter[Family]
) -> Iterator[tuple[Family, int, list[Example]]]:
    """The labelled examples of each compared family, by turns in one half and the other; `shown` counts those
    of earlier batches of the window."""
    for family in COMPARED:
        own = [each for each in examples if each.family == family and each.rows[0].labelled]
        for half in (0, 1):
            if chosen := own[(half + shown[family]) % 2 :: 2]:
                yield family, half, chosen
        shown[family] += len(own)


def _placed(batch: Batch, device: torch.device) -> Batch:
    return replace(
        batch,
        inputs=on_device(batch.inputs, device),
        labels=batch.labels.to(device),
        clean_row=batch.clean_row.to(device),
    )


def conflict_records(run: Path) -> list[Conflict]:
    """What was measured in the run's folder."""
    return cast(list[Conflict], read_log(run / LOG))


def conflict_summary(run: Path, until: int | None = None) -> dict[str, Summary]:
    """The contrasts of a run, up to a step, for its record."""
    records = conflict_records(run)
    return summary_of([record for record in records if until is None or record["step"] <= until])
