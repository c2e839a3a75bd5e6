"""What TensorBoard is told of a run, read from a real event file."""

from pathlib import Path
from typing import Any

import pytest

from modint_training.loop.trainer import read_log
from modint_training.tune import tune
from tests.training.small import lora_recipe, save_small_base


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # its own
def test_an_event_file_holds_the_parts_of_the_loss_and_the_figures_of_the_validation_split(
    processor: Any, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    base = save_small_base(processor, tmp_path / "base")
    tune(lora_recipe(base, "report_to=[tensorboard]"), tmp_path / "run")
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    *steps, seen = read_log(tmp_path / "run" / "log.jsonl")
    for part in ("loss", "sft", "cons", "lr"):
        told = [(event.step, event.value) for event in events.Scalars(f"train/{part}")]
        assert told == [(line["step"], pytest.approx(line[part])) for line in steps]
    for name in ("loss", "image-heavy/clean", "image-heavy/misleading_description/flips"):
        told = [(event.step, event.value) for event in events.Scalars(f"eval/{name}")]
        assert told == [(2, pytest.approx(seen[f"eval_{name}"]))]
