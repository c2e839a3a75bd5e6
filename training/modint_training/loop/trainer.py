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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

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
from modint_training.loop.disk import written
from modint_training.method.passes import bare
from modint_training.method.ranks import is_first_process, wanted_by_any

SEEN = "eval_"  # the Trainer's own mark of what was seen on a validation split
END_OF_WORK = signal.SIGUSR2  # from a training that ends to what feeds it
Batch = dict[str, Any]  # tensors by name, or lists of such
Loss = Callable[[nn.Module, Batch], Tensor]
Evaluate = Callable[[nn.Module, int], dict[str, float]]


Batches = Callable[[int], Batch | Sequence[Batch]]  # of step k: one batch, or its micro-batches


class Stream(IterableDataset[Batch]):
    """Batches by number, without end: batch k depends on k alone, so a resumed run sees the same ones.

    Of several workers each makes every n-th step; the loader takes from them in turn, so steps of one batch
    come in order.
    """

    def __init__(self, batch: Batches, start: int) -> None:
        self.batch = batch
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        step, stride = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        while True:
            made = self.batch(step)
            yield from [made] if isinstance(made, dict) else made
            step += stride


class LossTrainer(Trainer):
    """`loss(model, batch)` and `batches` are what a recipe brings. Of the Trainer's own ways two more are
    others: a checkpoint's weights are put back under whatever names they were saved, and a checkpoint that a
    full disk cuts off is removed, and said. Everything else is the Trainer's."""

    # The losses of micro-batches add up to the step's: the Trainer must not divide them by their number.
    loss_is_scaled_for_ga = True

    def __init__(self, *, loss: Loss, batches: Stream, workers: int = 1, **kwargs: Any) -> None:
        super().__init__(train_dataset=batches, **kwargs)
        self._loss = loss
        self._workers = workers

    def restore(self, checkpoint: Path) -> None:
        """Weights and figures of a finished run, without another step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # The Trainer's own way skips in silence what has another name in the file, and a LLaVA is saved under
        # other names than its modules have: a resumed run would start from fresh weights.
        if isinstance(self.model, PreTrainedModel) and not self.is_fsdp_enabled:
            saved = type(self.model).from_pretrained(resume_from_checkpoint)
            self.model.load_state_dict(saved.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step, folder = self.state.global_step, Path(self.args.output_dir)
        try:
            with written(
                f"the checkpoint of step {step} in {folder}", "go on from the one before with --resume auto"
            ):
                super()._save_checkpoint(model, trial)
        except ConfigError:
            shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
            raise

    def compute_loss(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        return self._loss(model, inputs)

    def get_train_dataloader(self) -> DataLoader[Batch]:
        assert isinstance(self.train_dataset, Stream)
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=4,
            worker_init_fn=_leave_sigterm_to_the_trainer,
        )


@contextmanager
def ending_its_workers() -> Iterator[None]:
    """End the processes that feed a training, however it ends: they ignore SIGTERM, by which an interpreter
    that ends asks its children to, and it would wait for them for ever. Of an error of theirs, which comes
    with a traceback, the sentence is kept."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except ConfigError as exc:
        _, theirs, sentence = str(exc).strip().rpartition(f".{type(exc).__name__}: ")
        if not theirs:
            raise
        raise type(exc)(f"{sentence} (mend it and go on with --resume auto)") from None
    finally:
        for process in set(multiprocessing.active_children()) - before:
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(process.pid, END_OF_WORK)
            process.join()


def _leave_sigterm_to_the_trainer(_: int) -> None:
    """A scheduler that signals the whole process group must not kill what feeds the last step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(END_OF_WORK, lambda *_: os._exit(0))


class Checkpoints(TrainerCallback):
    """Save a checkpoint whenever so many minutes have gone by, and at the last step; on SIGTERM finish the
    step, save one and stop, and `stopped` says that it came to that.

    Clocks differ, and a signal may reach one process of many: all save or stop at the same step where one of
    them is to. Each checkpoint holds the seconds trained until then, by this process and by those it took up
    from.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.began = self.last = time.monotonic()
        self.before = 0.0
        self.stopped = False
        self._told = False
        self._handler: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.before = _seconds(state)
        if threading.current_thread() is threading.main_thread():  # no other can set a handler
            self._handler = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self._told = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now = time.monotonic()
        late = now - self.last >= 60 * self.minutes
        late, self.stopped = wanted_by_any((late, self._told), args.device)
        if late or self.stopped or state.global_step >= state.max_steps:
            self.last = now
            state.log_history.append({"step": state.global_step, "seconds": self.before + now - self.began})
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
    """Seconds of training in the last checkpoints of the phases, resumed runs included."""
    known = ((phase, last_step(phase, "auto")) for phase in phases)
    last = (phase / f"checkpoint-{step}" / TRAINER_STATE_NAME for phase, step in known if step)
    return sum(_seconds(TrainerState.load_from_json(str(file))) for file in last)


class StepLog(TrainerCallback):
    """One JSON line a step with what `measure()` found, the learning rate and the time, and the same on the
    progress bar and to callbacks that log (TensorBoard, W&B, MLflow); and a line for each look at the
    validation split, its figures under `eval_` names. A resumed run cuts off what lies behind its checkpoint
    and goes on."""

    def __init__(self, file: Path, measure: Callable[[], dict[str, float]]) -> None:
        self.file = file
        self.measure = measure
        self.bar: ProgressCallback | None = None
        self.readers: Sequence[TrainerCallback] = ()  # TensorBoard and its like
        self.last = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            kept = [line for line in read_log(self.file) if line["step"] <= state.global_step]
            with self._written():
                fresh = self.file.with_suffix(".new")
                fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
                fresh.replace(self.file)
        self.last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        measured = self.measure()  # on every rank: it sums over them
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        rate = kw["optimizer"].param_groups[0]["lr"] if kw.get("optimizer") else float("nan")
        line = {"step": state.global_step, **measured, "lr": rate, "seconds": now - self.last}
        self.last = now
        self._append(line)
        for reader in self.readers:
            reader.on_log(args, state, control, logs=dict(line), model=kw.get("model"))
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
        seen = {name: value for name, value in (logs or {}).items() if name.startswith(SEEN)}
        if seen and state.is_world_process_zero:
            self._append({"step": state.global_step, **seen})
            self.last = time.monotonic()  # looking is no part of the next step

    def _append(self, line: dict[str, float]) -> None:
        with self._written(), self.file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _written(self) -> AbstractContextManager[None]:
        return written(str(self.file), "go on with --resume auto")


def read_log(file: Path) -> list[dict[str, float]]:
    """The lines of a step log, of steps and of looks at the validation split (`eval_` names); none where
    there is no file, and a last line that was cut off does not count."""
    if not file.is_file():
        return []
    lines = file.read_text("utf-8").split("\n")[:-1]  # what has no newline yet was not written whole
    return [json.loads(line) for line in lines if line]


class Evaluation(TrainerCallback):
    """Print, log and keep the figures of the validation split every so many steps; checkpoints carry them on.

    All that log (TensorBoard, W&B, MLflow, a `StepLog`) see them through `tell` under `eval_` names.
    """

    def __init__(self, evaluate: Evaluate, every: int) -> None:
        self.evaluate = evaluate
        self.every = every
        self.tell: Callable[[dict[str, float]], None] = lambda figures: None
        self.history: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.recall(state)

    def recall(self, state: TrainerState) -> None:
        """Take up the figures of the run so far."""
        self.history = _figures(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        if state.global_step % self.every and state.global_step != args.max_steps:
            return
        figures = self.evaluate(kw["model"], state.global_step)  # on every rank: each may see to a part
        self.history.append({"step": state.global_step, **figures})
        state.log_history.append({"step": state.global_step, "figures": self.history[-1]})
        if figures and state.is_world_process_zero:
            said = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(said, file=sys.stderr, flush=True)
        if figures:
            due = control.should_log  # the Trainer takes its own summary for given once anything is logged
            self.tell({f"{SEEN}{name}": value for name, value in figures.items()})
            control.should_log = due


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
        if not any(name.startswith(SEEN) for name in logs or ()):
            super().on_log(args, state, control, logs=logs, **kw)


def wants_bf16(precision: str) -> bool:
    """Whether to compute in bf16: on request, or under `auto` where the processor has that arithmetic."""
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
    """The steps of the checkpoints in `folder` that were written to their end, in order."""
    found = folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")
    return sorted(int(file.parent.name.rsplit("-", 1)[1]) for file in found if _is_whole(file))


def figures_of(checkpoint: Path) -> list[dict[str, float]]:
    """The figures of the validation split up to a checkpoint, by step."""
    return _figures(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)))


def _figures(state: TrainerState) -> list[dict[str, float]]:
    return [entry["figures"] for entry in state.log_history if "figures" in entry]


def _is_whole(state: Path) -> bool:
    """Whether a checkpoint's last file was written to its end."""
    try:
        return bool(json.loads(state.read_text("utf-8")))
    except ValueError:
        return False


def remove_checkpoints(folder: Path) -> None:
    """Forget what an earlier run left in `folder`."""
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old)


def on_one_gpu(arguments: TrainingArguments) -> None:
    """A process trains on one GPU: the Trainer would cut every batch up among all GPUs it sees, and not what
    the loss knows of the batch's rows."""
    seen = arguments.n_gpu
    if seen > 1:
        arguments._n_gpu = 1
        print(
            f"{seen} GPUs are visible, and one is used: `accelerate launch` starts a process for each",
            file=sys.stderr,
            flush=True,
        )


def only_units_it_has(model: nn.Module) -> None:
    """Let a model name such layers alone as it has: FSDP deals weights out in units of them, and stops at one
    that is missing. A LLaVA's CLIP names those of its text side as well."""
    core = bare(model)
    named = getattr(core, "_no_split_modules", None)
    if named:
        core._no_split_modules = set(named) & {type(module).__name__ for module in core.modules()}


def fit(
    model: nn.Module,
    loss: Loss,
    batch: Batches,
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
    """Train `model` in place, with a progress bar and checkpoints; returns the last mean loss.

    `batch(k)` gives the tensors of step k, or a list of its micro-batches, whose losses add up.
    `resume="auto"` continues from the folder's last checkpoint; any other value starts anew and removes the
    checkpoints that lie there. `workers` processes make the batches; with micro-batches one does, or those of
    several steps would mix. `further` are arguments of `transformers.TrainingArguments`. On SIGTERM a
    checkpoint is saved and TrainingStopped raised.
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
    on_one_gpu(arguments)
    only_units_it_has(model)
    if not start and is_first_process():
        remove_checkpoints(folder)
    arguments.distributed_state.wait_for_everyone()
    checkpoints = Checkpoints(checkpoint_minutes)
    every = [*callbacks, log, evaluation, checkpoints]
    trainer = LossTrainer(
        model=model,
        args=arguments,
        loss=loss,
        batches=Stream(batch, start),
        workers=workers if micro_batches == 1 else 1,
        callbacks=[callback for callback in every if callback],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(bar := Bar())
    if log:
        log.bar = bar
        log.readers = [callback for callback in trainer.callback_handler.callbacks if callback is not bar]
    if evaluation:
        evaluation.tell = trainer.log
    checkpoint = folder / f"checkpoint-{start}"
    if start < steps:
        with ending_its_workers():
            trainer.train(resume_from_checkpoint=str(checkpoint) if start else None)
    elif start:
        trainer.restore(checkpoint)
        if evaluation:
            evaluation.recall(trainer.state)
    if checkpoints.stopped and trainer.state.global_step < steps:
        raise TrainingStopped(
            f"SIGTERM came after step {trainer.state.global_step} of {steps}; the checkpoint lies in "
            f"{folder}: go on with --resume auto"
        )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1]) if losses else float("nan")
