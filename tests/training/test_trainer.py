"""The one training loop: a run that is broken off and resumed is the run that was not."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from peft import get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from modint_guard.errors import ConfigError, TrainingStopped
from modint_training.data.collate import Collated, collate, encode
from modint_training.loop.plots import curve, draw_curves, smooth
from modint_training.loop.trainer import (
    Evaluation,
    LossTrainer,
    StepLog,
    Stream,
    fit,
    last_step,
    read_log,
    remove_missing_shard_units,
    seconds_trained,
    seed_everything,
    wants_bf16,
)
from modint_training.models.loading import lora_config
from modint_training.tinyworld import suite
from tests.training.small import lora_recipe, small_model

NEVER, ALWAYS = 1e6, 1e-9  # minutes between checkpoints
STEPS = 6
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Points:
    """Points on a plane, the smallest batch."""

    x: Tensor
    y: Tensor


class KilledError(Exception):
    """What ends a run in the middle."""


def line() -> nn.Module:
    """The smallest thing that can be trained."""
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def line_batch(step: int) -> Points:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, generator=generator)
    return Points(x, x @ torch.tensor([[1.0], [-2.0], [0.5]]))


def line_loss(net: nn.Module, batch: Points) -> Tensor:
    return (net(batch.x) - batch.y).square().mean()


def train(net: nn.Module, loss: Any, batch: Any, folder: Path, **changes: Any) -> float:
    """`batch(step)` gives one batch, or a list of micro-batches."""
    settings = {
        "steps": STEPS,
        "lr": 1e-2,
        "warmup_steps": 1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "precision": "fp32",
        "seed": 0,
        "checkpoint_minutes": NEVER,
        "resume": "no",
    }
    seed_everything(0)

    def micro_batches(step: int) -> list[Any]:
        found = batch(step)
        return found if isinstance(found, list) else [found]

    return fit(net, loss, micro_batches, folder=folder, **{**settings, **changes})


def killed_after(steps: int, loss: Any) -> Callable[[nn.Module, Any], Tensor]:
    done = 0

    def wrapped(net: nn.Module, batch: Any) -> Tensor:
        nonlocal done
        if done == steps:
            raise KilledError
        done += 1
        return Tensor(loss(net, batch))

    return wrapped


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def small_llava(processor: Any) -> nn.Module:
    return nn.Module.train(small_model(processor))


def small_lora(processor: Any) -> nn.Module:
    base = small_model(processor)
    return nn.Module.train(get_peft_model(base, lora_config(lora_recipe("tinyworld-base"), "llava")))


def batches_of(processor: Any) -> Callable[[int], Collated]:
    def batch(step: int) -> Collated:
        items = (suite.training_item(4 * step + slot, seed=0, mixture=suite.Mixture()) for slot in range(4))
        return collate([encode(item, processor) for item in items], processor)

    return batch


def answer_loss(net: nn.Module, batch: Collated) -> Tensor:
    return Tensor(net(**batch.inputs, labels=batch.labels, use_cache=False).loss)


@pytest.mark.parametrize("make", [small_llava, small_lora])
def test_a_run_that_was_broken_off_and_resumed_equals_one_that_was_not(
    make: Callable[[Any], nn.Module], processor: Any, tmp_path: Path
) -> None:
    batch = batches_of(processor)
    whole, broken, resumed, fresh = (make(processor) for _ in range(4))
    train(whole, answer_loss, batch, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(broken, killed_after(3, answer_loss), batch, tmp_path / "broken", checkpoint_minutes=ALWAYS)
    assert last_step(tmp_path / "broken", "auto") == 3
    train(resumed, answer_loss, batch, tmp_path / "broken", resume="auto")
    assert same(resumed, whole)
    assert not same(resumed, fresh)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    net = line()
    before = line_loss(net, line_batch(99)).item()
    train(net, line_loss, line_batch, tmp_path, steps=60, lr=0.1)
    assert line_loss(net, line_batch(99)).item() < 0.05 * before


def test_the_last_mean_loss_is_returned(tmp_path: Path) -> None:
    assert 0 < train(line(), line_loss, line_batch, tmp_path, steps=50) < 20


def test_the_last_interval_is_saved(tmp_path: Path) -> None:
    # Defect 10 of the reference code: what comes after the last checkpoint is lost.
    train(line(), line_loss, line_batch, tmp_path)
    assert steps_of(tmp_path) == [STEPS]


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    train(line(), line_loss, line_batch, tmp_path, checkpoint_minutes=ALWAYS)
    assert steps_of(tmp_path) == [STEPS - 1, STEPS]


def test_a_finished_run_is_taken_up_as_it_ended(tmp_path: Path) -> None:
    first, again = line(), line()
    seen = Evaluation(lambda net, step: {"bias": float(step)}, every=2)
    train(first, line_loss, line_batch, tmp_path, evaluation=seen)
    taken_up = Evaluation(lambda net, step: {}, every=2)
    train(again, killed_after(0, line_loss), line_batch, tmp_path, resume="auto", evaluation=taken_up)
    assert same(again, first)
    assert taken_up.history == seen.history == [{"step": step, "bias": float(step)} for step in (2, 4, 6)]


def test_a_run_made_shorter_than_its_checkpoint_is_finished(tmp_path: Path) -> None:
    first, again = line(), line()
    train(first, line_loss, line_batch, tmp_path)
    train(again, killed_after(0, line_loss), line_batch, tmp_path, resume="auto", steps=4)
    assert same(again, first)


def test_the_figures_before_a_break_are_kept(tmp_path: Path) -> None:
    evaluation = Evaluation(lambda net, step: {"share": step / 10}, every=2)
    with pytest.raises(KilledError):
        train(
            line(),
            killed_after(3, line_loss),
            line_batch,
            tmp_path,
            evaluation=evaluation,
            checkpoint_minutes=ALWAYS,
        )
    resumed = Evaluation(lambda net, step: {"share": step / 10}, every=2)
    train(line(), line_loss, line_batch, tmp_path, resume="auto", evaluation=resumed)
    assert resumed.history == [
        {"step": 2, "share": 0.2},
        {"step": 4, "share": 0.4},
        {"step": 6, "share": 0.6},
    ]


def test_seconds_are_counted_over_phases_and_over_breaks(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert seconds_trained(a, b) == 0
    with pytest.raises(KilledError):
        train(line(), slow(killed_after(3, line_loss)), line_batch, a, checkpoint_minutes=ALWAYS)
    before = seconds_trained(a, b)
    assert before >= 0.3  # three steps of a tenth of a second
    train(line(), slow(line_loss), line_batch, a, resume="auto")
    one = seconds_trained(a, b)
    assert one >= before + 0.3
    train(line(), slow(line_loss), line_batch, b)
    assert seconds_trained(a, b) >= one + 0.6
    assert seconds_trained(a) == one  # what else lies beside it was trained by another


def slow(loss: Any) -> Callable[[nn.Module, Any], Tensor]:
    def wrapped(net: nn.Module, batch: Any) -> Tensor:
        time.sleep(0.1)
        return Tensor(loss(net, batch))

    return wrapped


def test_the_last_step_is_evaluated_even_between_intervals(tmp_path: Path) -> None:
    evaluation = Evaluation(lambda net, step: {}, every=4)
    train(line(), line_loss, line_batch, tmp_path, evaluation=evaluation)
    assert [figures["step"] for figures in evaluation.history] == [4, 6]


def test_a_run_that_starts_anew_forgets_the_checkpoints_of_an_earlier_one(tmp_path: Path) -> None:
    train(line(), line_loss, line_batch, tmp_path, steps=9)
    with pytest.raises(KilledError):
        train(line(), killed_after(2, line_loss), line_batch, tmp_path, checkpoint_minutes=ALWAYS)
    assert last_step(tmp_path, "auto") == 2  # and not 9, of which the new run knows nothing


def test_a_checkpoint_that_was_half_written_is_not_resumed_from(tmp_path: Path) -> None:
    train(line(), line_loss, line_batch, tmp_path, checkpoint_minutes=ALWAYS)
    (tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").unlink()
    assert last_step(tmp_path, "auto") == STEPS - 1


def test_a_checkpoint_whose_last_file_was_cut_off_is_not_resumed_from(tmp_path: Path) -> None:
    train(line(), line_loss, line_batch, tmp_path, checkpoint_minutes=ALWAYS)
    state = tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json"
    for length in (0, 40):
        state.write_text(state.read_text("utf-8")[:length], "utf-8")
        assert last_step(tmp_path, "auto") == STEPS - 1
    whole, resumed = line(), line()
    train(whole, line_loss, line_batch, tmp_path / "whole")
    train(resumed, line_loss, line_batch, tmp_path, resume="auto")
    assert same(resumed, whole)


def wide() -> nn.Module:
    """400 kB of weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 20_000), nn.Linear(20_000, 1))


def test_a_run_that_is_killed_while_it_saves_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_while_saving", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        check=False,
        capture_output=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert (tmp_path / "run" / "checkpoint-3").exists()
    # Nearly always it was only begun; had it been finished, it would be as good.
    assert last_step(tmp_path / "run", "auto") in (2, 3)
    whole, resumed = wide(), wide()
    train(whole, line_loss, line_batch, tmp_path / "whole")
    train(resumed, line_loss, line_batch, tmp_path / "run", resume="auto")
    assert same(resumed, whole)


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    steps, limits = 0, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(net: nn.Module, batch: Points) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:  # from here on no file may grow beyond 100 kB
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return line_loss(net, batch)

    whole, broken, resumed = wide(), wide(), wide()
    train(whole, line_loss, line_batch, tmp_path / "whole")
    try:
        with pytest.raises(
            ConfigError,
            match=r"the checkpoint of step 3 in .* cannot be written \(File too large\): make room, and",
        ):
            train(broken, filling, line_batch, tmp_path / "run", checkpoint_minutes=ALWAYS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert steps_of(tmp_path / "run") == [1, 2]
    train(resumed, line_loss, line_batch, tmp_path / "run", resume="auto")
    assert same(resumed, whole)


class Unsaved(nn.Linear):
    """A layer whose weights cannot be had."""

    def state_dict(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("Connection closed by peer")


def test_a_checkpoint_that_fails_for_another_reason_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"):
        train(Unsaved(3, 1), line_loss, line_batch, tmp_path)


def test_a_log_that_finds_the_disk_full_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    log = logged(tmp_path)

    def filling(net: nn.Module, batch: Points) -> Tensor:
        if len(read_log(log.file)) == 2:
            log.file.unlink()
            log.file.symlink_to("/dev/full")
        return line_loss(net, batch)

    with pytest.raises(
        ConfigError,
        match=r"log\.jsonl cannot be written \(No space left on device\): make room, and go on with --resume",
    ):
        train(line(), filling, line_batch, tmp_path / "run", log=log)


def test_without_checkpoints_or_without_asking_a_run_starts_at_nought(tmp_path: Path) -> None:
    assert last_step(tmp_path / "nowhere", "auto") == 0
    train(line(), line_loss, line_batch, tmp_path)
    assert (last_step(tmp_path, "no"), last_step(tmp_path, "auto")) == (0, STEPS)


def test_a_stream_goes_on_from_where_it_is_told() -> None:
    stream = Stream(lambda step: [torch.tensor(step)], start=5)
    assert [int(batch) for batch in islice(stream, 3)] == [5, 6, 7]


@dataclass(frozen=True)
class Nested:
    """A record of records, as the base's language training has them."""

    parts: tuple[Points, ...]
    inputs: dict[str, Tensor]


def nested(step: int) -> Nested:
    return Nested((line_batch(step), line_batch(step + 1)), {"ids": torch.tensor([step])})


def test_a_record_reaches_the_loss_as_the_worker_made_it(tmp_path: Path) -> None:
    seen: list[Nested] = []

    def loss(net: nn.Module, batch: Nested) -> Tensor:
        seen.append(batch)
        return line_loss(net, batch.parts[0])

    train(line(), loss, nested, tmp_path)
    assert [batch.inputs["ids"].tolist() for batch in seen] == [[step] for step in range(STEPS)]
    for step, batch in enumerate(seen):
        assert all(torch.equal(part.x, line_batch(step + at).x) for at, part in enumerate(batch.parts))


def test_every_tensor_of_a_record_moves_to_the_trainers_device() -> None:
    trainer: Any = LossTrainer.__new__(LossTrainer)
    trainer.args, trainer.is_deepspeed_enabled = SimpleNamespace(device=torch.device("meta")), False
    moved = trainer._prepare_inputs(nested(0))
    tensors = [moved.inputs["ids"], *(tensor for part in moved.parts for tensor in (part.x, part.y))]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 5


def test_several_workers_bring_the_steps_in_order() -> None:
    stream = Stream(lambda step: [torch.tensor(step)], start=5)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert [int(batch) for batch in islice(loader, 7)] == [5, 6, 7, 8, 9, 10, 11]


def test_only_auto_asks_what_the_processor_can_do() -> None:
    assert wants_bf16("bf16") and not wants_bf16("fp32")
    assert wants_bf16("auto") in (True, False)


def test_seeding_makes_every_generator_repeat_itself() -> None:
    drawn = []
    for _ in range(2):
        seed_everything(7)
        drawn.append((random.random(), float(np.random.random()), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


# Micro-batches, signals, the log


def test_micro_batches_of_a_step_add_up(tmp_path: Path) -> None:
    def halves(step: int) -> list[Points]:
        whole = line_batch(step)
        return [Points(whole.x[half::2], whole.y[half::2]) for half in (0, 1)]

    def half_loss(net: nn.Module, batch: Points) -> Tensor:
        return line_loss(net, batch) / 2  # of the step's mean

    whole, cut = line(), line()
    train(whole, line_loss, line_batch, tmp_path / "whole")
    train(cut, half_loss, halves, tmp_path / "cut", micro_batches=2)
    assert torch.allclose(whole.weight, cut.weight, atol=1e-6)


def test_a_run_that_is_told_to_end_saves_a_checkpoint_and_can_go_on(tmp_path: Path) -> None:
    seen = 0

    def told(net: nn.Module, batch: Points) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == 3:
            # As a scheduler that signals the whole group: what loads the data is told as well.
            for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                assert process.pid
                os.kill(process.pid, signal.SIGTERM)
        return line_loss(net, batch)

    before = signal.getsignal(signal.SIGTERM)
    whole, stopped, resumed = line(), line(), line()
    train(whole, line_loss, line_batch, tmp_path / "whole")
    with pytest.raises(
        TrainingStopped, match=r"stopped by SIGTERM after step 3 of 6; .* go on with --resume auto"
    ):
        train(stopped, told, line_batch, tmp_path / "run")
    assert steps_of(tmp_path / "run") == [3]
    assert signal.getsignal(signal.SIGTERM) is before
    train(resumed, line_loss, line_batch, tmp_path / "run", resume="auto")
    assert same(resumed, whole)


def test_one_process_uses_one_gpu_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def device(arguments: TrainingArguments) -> torch.device:
        found = torch.device("cpu")
        PartialState(cpu=True)
        arguments.distributed_state = PartialState()
        arguments._n_gpu = 2
        return found

    seen = cached_property(device)
    seen.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", seen)
    kinds = set()

    def watched(net: nn.Module, batch: Points) -> Tensor:
        kinds.add((type(net), len(batch.x)))
        return line_loss(net, batch)

    train(line(), watched, line_batch, tmp_path)
    assert kinds == {(nn.Linear, 8)}  # no DataParallel, which would cut the batch in two
    said = "2 GPUs are visible, and one is used: `accelerate launch` starts a process for each\n"
    assert said in capsys.readouterr().err


def logged(tmp_path: Path) -> StepLog:
    return StepLog(tmp_path / "log.jsonl", lambda: {"loss": 0.5, "adv": 0.25})


def test_every_step_is_a_line_of_the_log(tmp_path: Path) -> None:
    train(line(), line_loss, line_batch, tmp_path / "run", log=logged(tmp_path))
    lines = read_log(tmp_path / "log.jsonl")
    assert [entry["step"] for entry in lines] == [1, 2, 3, 4, 5, 6]
    assert all((entry["loss"], entry["adv"]) == (0.5, 0.25) for entry in lines)
    assert all(entry["seconds"] > 0 for entry in lines)
    rates = [entry["lr"] for entry in lines]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(
        1e-2
    )  # cosine, after one step up


def test_what_is_logged_reaches_other_callbacks_a_step_at_a_time(tmp_path: Path) -> None:
    class Board(TrainerCallback):
        """What TensorBoard's callback is to the Trainer."""

        def __init__(self) -> None:
            self.seen: list[tuple[int, dict[str, float]]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "adv" in logs:  # beside the Trainer's own summary
                self.seen.append((state.global_step, logs))

    board = Board()
    train(line(), line_loss, line_batch, tmp_path / "run", log=logged(tmp_path), callbacks=[board])
    assert [(step, logs["step"], logs["adv"]) for step, logs in board.seen] == [
        (step, step, 0.25) for step in range(1, STEPS + 1)
    ]


class Reader(TrainerCallback):
    """What is told, as TensorBoard's callback hears it."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.told.append((state.global_step, dict(logs)))


def test_the_figures_of_the_validation_split_reach_log_and_readers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, seen = Reader(), Evaluation(lambda net, step: {"loss": 2.0 / step, "vqa/clean": 0.5}, every=4)
    train(line(), line_loss, line_batch, tmp_path, log=logged(tmp_path), callbacks=[reader], evaluation=seen)
    expected = [{"step": step, "eval_loss": 2.0 / step, "eval_vqa/clean": 0.5} for step in (4, 6)]
    lines = read_log(tmp_path / "log.jsonl")
    assert [line for line in lines if "eval_loss" in line] == expected
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 6]
    told = [(step, logs["eval_loss"]) for step, logs in reader.told if "eval_loss" in logs]
    assert told == [(4, 0.5), (6, 2.0 / 6)]
    printed = capsys.readouterr()
    assert "loss 0.500  vqa/clean 0.500\n" in printed.err and "eval_" not in printed.out


def test_a_look_at_the_validation_split_does_not_cost_the_summary_of_that_step(tmp_path: Path) -> None:
    seen = Evaluation(lambda net, step: {"loss": 1.0}, every=50)
    assert 0 < train(line(), line_loss, line_batch, tmp_path, steps=50, evaluation=seen) < 20


def test_looking_is_no_part_of_the_next_step(tmp_path: Path) -> None:
    log, looked = logged(tmp_path), [0.0]

    def look(net: nn.Module, step: int) -> dict[str, float]:
        looked.append(time.monotonic())
        return {"loss": 1.0}

    def loss(net: nn.Module, batch: Points) -> Tensor:
        assert log.last >= looked[-1]  # from when on the step is timed
        return line_loss(net, batch)

    train(line(), loss, line_batch, tmp_path, log=log, evaluation=Evaluation(look, every=2))
    assert len(looked) == 4


def test_a_resumed_run_goes_on_with_the_log_behind_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(
            line(),
            killed_after(3, line_loss),
            line_batch,
            tmp_path / "run",
            log=logged(tmp_path),
            checkpoint_minutes=ALWAYS,
        )
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 4, "loss": 9.0}) + "\n" + '{"step": 5, "lo')  # cut off in the middle
    train(line(), line_loss, line_batch, tmp_path / "run", log=logged(tmp_path), resume="auto")
    assert [(entry["step"], entry["loss"]) for entry in read_log(tmp_path / "log.jsonl")] == [
        (step, 0.5) for step in range(1, 7)
    ]


def test_the_curves_are_drawn_from_the_log(tmp_path: Path) -> None:
    assert draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png") is False
    lines = [{"step": step, "loss": 1 / step, "sft": 1 / step, "delta_rms": 0.1} for step in range(1, 9)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    assert draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png") is True
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 600


def test_what_was_seen_of_the_validation_split_is_drawn_beside(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    seen = {"eval_loss": 0.5, "eval_vqa/clean": 0.8, "eval_vqa/noise": 0.6, "eval_vqa/noise/flips": 0.2}
    for name, told in (("without", lines), ("with", [*lines, {"step": 8, **seen}])):
        (tmp_path / name).write_text("".join(json.dumps(entry) + "\n" for entry in told))
        assert draw_curves(tmp_path / name, tmp_path / f"{name}.png") is True
    with Image.open(tmp_path / "without.png") as two, Image.open(tmp_path / "with.png") as three:
        assert three.width > two.width
    assert curve([*lines, {"step": 8, **seen}], "eval_vqa/noise/flips") == ([8], [0.2])


def test_curves_that_cannot_be_drawn_are_said_to_be_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    picture = tmp_path / "curves.png"
    picture.symlink_to("/dev/full")
    assert draw_curves(tmp_path / "log.jsonl", picture) is False
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_curves(tmp_path / "log.jsonl", picture) is False
    full, missing = capsys.readouterr().err.splitlines()
    assert full == f"{picture} is not drawn: [Errno 28] No space left on device"
    assert missing == f"{picture} is not drawn: it needs: pip install 'modint-guard[report]'"


def test_curves_are_moving_means() -> None:
    assert smooth((4.0, 2.0, 0.0, 6.0), 2) == [4.0, 3.0, 1.0, 3.0]


def test_a_model_names_no_unit_for_fsdp_that_it_has_not(processor: Any) -> None:
    model = small_model(processor)
    there = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) - there  # CLIP's text side
    remove_missing_shard_units(model)
    assert model._no_split_modules and set(model._no_split_modules) <= there
