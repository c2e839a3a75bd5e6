"""One training loop for every recipe: a `transformers.Trainer` with another loss and data loader."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from modint_guard.errors import ConfigError, TrainingStopped
from modint_training.loop.disk import disk_errors_as_sentences
from modint_training.loop.validation import Evaluate, Figures
from modint_training.method.passes import unwrap
from modint_training.method.ranks import any_rank, is_first_process

VALIDATION = "eval_"  # the Trainer's own prefix for figures of a validation split
STOP_WORKER = signal.SIGUSR2  # sent to the workers that make batches when the training ends
B = TypeVar("B")  # a batch: a record (dataclass) of tensors, mappings and tuples of such


class Stream(IterableDataset[B]):
    """The batches of a run in order, without end, from `micro_batches(k)`, those of step k.

    Step k depends on k alone, so a resumed run sees the same batches. With several workers each makes every
    n-th step; the loader takes from them in turn, so steps of one batch come in order.
    """

    def __init__(self, micro_batches: Callable[[int], Sequence[B]], start: int) -> None:
        self.micro_batches = micro_batches
        self.start = start

    def __iter__(self) -> Iterator[B]:
        worker = get_worker_info()
        step, stride = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        while True:
            yield from self.micro_batches(step)
            step += stride


class LossTrainer(Trainer, Generic[B]):
    """A `Trainer` with a loss and a stream of batches of its own, which differs from the original in three
    more ways: a batch is a record instead of a mapping; a checkpoint's weights are restored whatever names
    they were saved under; and a checkpoint that a full disk cut off is removed and reported."""

    # The losses of micro-batches add up to the step's: the Trainer must not divide them by their number.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        loss: Callable[[nn.Module, B], Tensor],
        batches: Stream[B],
        workers: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_dataset=batches, **kwargs)
        self._loss = loss
        self._workers = workers

    # The Trainer expects batches to be mappings: it moves their tensors to the device, refuses empty ones and
    # counts their labels and tokens. Here a batch is a record; of the counts only the estimate of operations
    # is used, by the Trainer's own log.

    def _prepare_input(self, data: Any) -> Any:
        if is_dataclass(data) and not isinstance(data, type):
            moved = {field.name: self._prepare_input(getattr(data, field.name)) for field in fields(data)}
            return replace(data, **moved)
        return super()._prepare_input(data)

    def _prepare_inputs(self, inputs: B) -> B:
        return self._prepare_input(inputs)

    def _get_num_items_in_batch(self, batch_samples: list[B], device: torch.device) -> None:
        return None

    def floating_point_ops(self, inputs: B) -> int:
        model_inputs = getattr(inputs, "inputs", None)
        return 0 if model_inputs is None else super().floating_point_ops(model_inputs)

    def restore(self, checkpoint: Path) -> None:
        """Restore weights and figures of a finished run, without another step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # The Trainer silently skips weights that have another name in the file, and a LLaVA is saved under
        # other names than its modules have: a resumed run would start from fresh weights.
        if isinstance(self.model, PreTrainedModel) and not self.is_fsdp_enabled:
            saved = type(self.model).from_pretrained(resume_from_checkpoint)
            self.model.load_state_dict(saved.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step, folder = self.state.global_step, Path(self.args.output_dir)
        try:
            with disk_errors_as_sentences(
                f"the checkpoint of step {step} in {folder}", "go on from the one before with --resume auto"
            ):
                super()._save_checkpoint(model, trial)
        except ConfigError:
            shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
            raise

    def compute_loss(self, model: nn.Module, inputs: B, *args: Any, **kwargs: Any) -> Any:
        return self._loss(model, inputs)

    def get_train_dataloader(self) -> DataLoader[B]:
        assert isinstance(self.train_dataset, Stream)
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=4,
            worker_init_fn=_ignore_sigterm,
        )


@contextmanager
def workers_stopped_at_the_end() -> Iterator[None]:
    """Stop the worker processes that the block started, however it ends: they ignore SIGTERM, by which Python
    would stop them at exit, and then wait for them for ever. An error raised in a worker arrives with its
    traceback as text; only its sentence is kept."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except ConfigError as exc:
        _, traceback, sentence = str(exc).strip().rpartition(f".{type(exc).__name__}: ")
        if not traceback:
            raise
        raise type(exc)(f"{sentence} (correct it and go on with --resume auto)") from None
    finally:
        for process in set(multiprocessing.active_children()) - before:
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(process.pid, STOP_WORKER)
            process.join()


def _ignore_sigterm(_: int) -> None:
    """A scheduler that signals the whole process group must not kill the workers before the last step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(STOP_WORKER, lambda *_: os._exit(0))


class Checkpoints(TrainerCallback):
    """Save a checkpoint every `minutes` and at the last step; on SIGTERM finish the step, save a checkpoint,
    stop, and set `stopped`.

    The clocks of several processes differ, and a signal may reach only one of them: as soon as one process
    has to save or stop, all of them do, at the same step. Each checkpoint holds the seconds trained so far,
    including those of the runs that this one resumed.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.began = self.last_save = time.monotonic()
        self.seconds_before = 0.0
        self.stopped = False
        self._sigterm_received = False
        self._handler: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.seconds_before = _seconds(state)
        if threading.current_thread() is threading.main_thread():  # no other thread can set a handler
            self._handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        self._sigterm_received = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now = time.monotonic()
        is_due = now - self.last_save >= 60 * self.minutes
        is_due, self.stopped = any_rank((is_due, self._sigterm_received), args.device)
        if is_due or self.stopped or state.global_step >= state.max_steps:
            self.last_save = now
            seconds = self.seconds_before + now - self.began
            state.log_history.append({"step": state.global_step, "seconds": seconds})
            control.should_save = True
            control.should_training_stop = control.should_training_stop or self.stopped

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)


def _seconds(state: TrainerState) -> float:
    return max((entry["seconds"] for entry in state.log_history if "seconds" in entry), default=0.0)


def seconds_trained(*phases: Path) -> float:
    """The seconds of training recorded in the last checkpoint of each phase, resumed runs included."""
    last_steps = ((phase, last_step(phase, "auto")) for phase in phases)
    states = (phase / f"checkpoint-{step}" / TRAINER_STATE_NAME for phase, step in last_steps if step)
    return sum(_seconds(TrainerState.load_from_json(str(file))) for file in states)


class StepLog(TrainerCallback):
    """A file with one JSON line for each step: the figures of `measure()`, the learning rate and the seconds;
    and one for each evaluation, its figures under `eval_` names. The steps' figures also go to the progress
    bar and to the callbacks that log (TensorBoard, W&B, MLflow). A resumed run first removes the lines after
    its checkpoint."""

    def __init__(self, file: Path, measure: Callable[[], Figures]) -> None:
        self.file = file
        self.measure = measure
        self.bar: ProgressCallback | None = None
        self.reporters: Sequence[TrainerCallback] = ()  # TensorBoard and the like
        self.last = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            cut_log(self.file, state.global_step)
        self.last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        measured = self.measure()  # on every rank: it sums over the ranks
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        rate = kw["optimizer"].param_groups[0]["lr"] if kw.get("optimizer") else float("nan")
        line = {"step": state.global_step, **measured, "lr": rate, "seconds": now - self.last}
        self.last = now
        append_lines(self.file, [line])
        for reporter in self.reporters:
            reporter.on_log(args, state, control, logs=dict(line), model=kw.get("model"))
        if self.bar and self.bar.training_bar is not None:
            self.bar.training_bar.set_postfix({name: f"{value:.3g}" for name, value in measured.items()})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        figures = {name: value for name, value in (logs or {}).items() if name.startswith(VALIDATION)}
        if figures and state.is_world_process_zero:
            append_lines(self.file, [{"step": state.global_step, **figures}])
            self.last = time.monotonic()  # an evaluation is not part of the next step


def append_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append lines to a log, as JSON. ConfigError if they cannot be written."""
    with _log_errors(file), file.open("a", encoding="utf-8") as log:
        log.write("".join(json.dumps(line) + "\n" for line in lines))


def cut_log(file: Path, step: int) -> None:
    """Remove the lines of later steps from a log; without a file an empty one is written."""
    kept = [line for line in read_log(file) if line["step"] <= step]
    with _log_errors(file):
        fresh = file.with_suffix(".new")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        fresh.replace(file)


def _log_errors(file: Path) -> AbstractContextManager[None]:
    return disk_errors_as_sentences(str(file), "go on with --resume auto")


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log, such as those of steps and of evaluations (`eval_` names) in a step log. Without a
    file there are none; a last line that was cut off is left out."""
    if not file.is_file():
        return []
    lines = file.read_text("utf-8").split("\n")[:-1]  # a line without a newline was not written whole
    return [json.loads(line) for line in lines if line]


class Evaluation(TrainerCallback):
    """Print, log and keep the figures of the validation split every `every` steps; checkpoints keep them too.

    Everything that logs (TensorBoard, W&B, MLflow, a `StepLog`) gets them through `log`, under `eval_` names.
    """

    def __init__(self, evaluate: Evaluate, every: int) -> None:
        self.evaluate = evaluate
        self.every = every
        self.log: Callable[[Figures], None] = lambda figures: None
        self.history: list[Figures] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.restore(state)

    def restore(self, state: TrainerState) -> None:
        """Restore the figures of the run so far."""
        self.history = _figures(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        if state.global_step % self.every and state.global_step != args.max_steps:
            return
        figures = self.evaluate(kw["model"], state.global_step)  # on every rank: each may measure a part
        self.history.append({"step": state.global_step, **figures})
        state.log_history.append({"step": state.global_step, "figures": self.history[-1]})
        if figures and state.is_world_process_zero:
            line = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(line, file=sys.stderr, flush=True)
        if figures:
            should_log = control.should_log  # the Trainer takes its own summary as logged once anything is
            self.log({f"{VALIDATION}{name}": value for name, value in figures.items()})
            control.should_log = should_log


class Bar(ProgressCallback):
    """The Trainer's progress bar, without the figures that an `Evaluation` prints."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **kw: Any,
    ) -> None:
        if not any(name.startswith(VALIDATION) for name in logs or ()):
            super().on_log(args, state, control, logs=logs, **kw)


def wants_bf16(precision: str) -> bool:
    """Whether to compute in bf16: on request, or with `auto` if the hardware has bf16 arithmetic."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16())


def has_fast_bf16() -> bool:
    """A GPU with bf16, or AVX-512/AMX on a CPU; emulated bf16 is slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    capabilities = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(capabilities())


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def last_step(folder: Path, resume: str) -> int:
    """The step of the last whole checkpoint in `folder` when `resume` is "auto", else 0."""
    return max(whole_steps(folder), default=0) if resume == "auto" else 0


def whole_steps(folder: Path) -> list[int]:
    """The steps of the completely written checkpoints in `folder`, in order."""
    states = folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")
    return sorted(int(state.parent.name.rsplit("-", 1)[1]) for state in states if _is_whole(state))


def figures_until(checkpoint: Path) -> list[Figures]:
    """The figures of the validation split up to a checkpoint, by step."""
    return _figures(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)))


def _figures(state: TrainerState) -> list[Figures]:
    return [entry["figures"] for entry in state.log_history if "figures" in entry]


def _is_whole(state: Path) -> bool:
    """Whether a checkpoint's last file was written completely."""
    try:
        return bool(json.loads(state.read_text("utf-8")))
    except ValueError:
        return False


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of an earlier run from `folder`."""
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old)


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Train on one GPU in each process: the Trainer would split every batch among all visible GPUs."""
    visible = arguments.n_gpu
    if visible > 1:
        arguments._n_gpu = 1
        print(
            f"{visible} GPUs are visible, and one is used: `accelerate launch` starts a process for each",
            file=sys.stderr,
            flush=True,
        )


def remove_missing_shard_units(model: nn.Module) -> None:
    """Remove the layer classes that a model does not contain from the list by which FSDP shards it: FSDP
    stops at a missing one, and LLaVA's CLIP also lists the layers of its text side."""
    core = unwrap(model)
    listed = getattr(core, "_no_split_modules", None)
    if listed:
        core._no_split_modules = set(listed) & {type(module).__name__ for module in core.modules()}


@dataclass(frozen=True)
class Trained:
    """A trained model, its processor, and the figures of the validation split by step."""

    model: Any
    processor: Any
    history: list[Figures]


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, B], Tensor],
    micro_batches_of: Callable[[int], Sequence[B]],
    *,
    folder: Path,
    steps: int,
    lr: float,
    warmup_steps: int,
    weight_decay: float,
    max_grad_norm: float,
    precision: str,
    seed: int,
    checkpoint_minutes: float,
    resume: str,
    evaluation: Evaluation | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    log: StepLog | None = None,
    micro_batches: int = 1,
    workers: int = 1,
    **further: Any,
) -> float:
    """Train `model` in place, with a progress bar and checkpoints in `folder`; returns the last mean loss.

    `micro_batches_of(k)` gives the micro-batches of step k, whose losses add up. `resume="auto"` continues
    from the folder's last checkpoint; any other value starts from scratch and removes the checkpoints there.
    `workers` processes make the batches; with several micro-batches only one does, since those of several
    steps would mix. `further` are arguments of `transformers.TrainingArguments`. On SIGTERM a checkpoint is
    saved and TrainingStopped raised.
    """
    start = last_step(folder, resume)
    chosen = {
        "lr_scheduler_type": "cosine",
        "adam_beta2": 0.98,
        "report_to": "none",
        **further,
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=micro_batches,
        learning_rate=lr,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        bf16=wants_bf16(precision),
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=50,
        save_strategy="no",
        save_total_limit=2,
        save_only_model=False,
        ignore_data_skip=True,
        remove_unused_columns=False,
        disable_tqdm=False,
        log_level="warning",
        **chosen,
    )
    use_one_gpu(arguments)
    remove_missing_shard_units(model)
    if not start and is_first_process():
        remove_checkpoints(folder)
    arguments.distributed_state.wait_for_everyone()
    checkpoints = Checkpoints(checkpoint_minutes)
    every = [*callbacks, log, evaluation, checkpoints]
    trainer = LossTrainer(
        model=model,
        args=arguments,
        loss=loss,
        batches=Stream(micro_batches_of, start),
        workers=workers if micro_batches == 1 else 1,
        callbacks=[callback for callback in every if callback],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(bar := Bar())
    if log:
        log.bar = bar
        log.reporters = [callback for callback in trainer.callback_handler.callbacks if callback is not bar]
    if evaluation:
        evaluation.log = trainer.log
    checkpoint = folder / f"checkpoint-{start}"
    if start < steps:
        with workers_stopped_at_the_end():
            trainer.train(resume_from_checkpoint=str(checkpoint) if start else None)
    elif start:
        trainer.restore(checkpoint)
        if evaluation:
            evaluation.restore(trainer.state)
    if checkpoints.stopped and trainer.state.global_step < steps:
        raise TrainingStopped(
            f"stopped by SIGTERM after step {trainer.state.global_step} of {steps}; the checkpoint is in "
            f"{folder}: go on with --resume auto"
        )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1]) if losses else float("nan")
