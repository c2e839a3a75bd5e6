"""One training loop for every recipe: a `transformers.Trainer` with another loss and data loader."""

import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

Batch = dict[str, Any]  # tensors by name, or lists of such
Loss = Callable[[nn.Module, Batch], Tensor]
Evaluate = Callable[[nn.Module, int], dict[str, float]]


class Stream(IterableDataset[Batch]):
    """Batches by number, without end: batch k depends on k alone, so a resumed run sees the same ones."""

    def __init__(self, batch: Callable[[int], Batch], start: int) -> None:
        self.batch = batch
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        step = self.start
        while True:
            yield self.batch(step)
            step += 1


class LossTrainer(Trainer):
    """`loss(model, batch)` and `batches` are what a recipe brings; everything else is the Trainer's own."""

    def __init__(self, *, loss: Loss, batches: Stream, **kwargs: Any) -> None:
        super().__init__(train_dataset=batches, **kwargs)
        self._loss = loss

    def restore(self, checkpoint: Path) -> None:
        """Weights and figures of a finished run, without another step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # The Trainer's own way skips in silence what has another name in the file, and a LLaVA is saved under
        # other names than its modules have: a resumed run would start from fresh weights.
        if isinstance(self.model, PreTrainedModel):
            saved = type(self.model).from_pretrained(resume_from_checkpoint)
            self.model.load_state_dict(saved.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def compute_loss(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        return self._loss(model, inputs)

    def get_train_dataloader(self) -> DataLoader[Batch]:
        assert isinstance(self.train_dataset, Stream)
        return DataLoader(self.train_dataset, batch_size=None, num_workers=1, prefetch_factor=4)


class EveryMinutes(TrainerCallback):
    """Save a checkpoint whenever so many minutes have gone by, and at the last step.

    Each holds the seconds trained until then, by this process and by those it took up from.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.began = self.last = time.monotonic()
        self.before = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.before = _seconds(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now = time.monotonic()
        if now - self.last >= 60 * self.minutes or state.global_step >= state.max_steps:
            self.last = now
            state.log_history.append({"step": state.global_step, "seconds": self.before + now - self.began})
            control.should_save = True


def _seconds(state: TrainerState) -> float:
    return max((entry["seconds"] for entry in state.log_history if "seconds" in entry), default=0.0)


def seconds_trained(folder: Path) -> float:
    """Seconds of training in the last checkpoints of all phases under `folder`, resumed runs included."""
    phases = {file.parent.parent for file in folder.rglob(TRAINER_STATE_NAME)}
    last = (phase / f"checkpoint-{last_step(phase, 'auto')}" / TRAINER_STATE_NAME for phase in phases)
    return sum(_seconds(TrainerState.load_from_json(str(file))) for file in last)


class Evaluation(TrainerCallback):
    """Print and keep the figures of the validation split every so many steps; checkpoints carry them on."""

    def __init__(self, evaluate: Evaluate, every: int) -> None:
        self.evaluate = evaluate
        self.every = every
        self.history: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.recall(state)

    def recall(self, state: TrainerState) -> None:
        """Take up the figures of the run so far."""
        self.history = [entry["figures"] for entry in state.log_history if "figures" in entry]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step == args.max_steps:
            figures = self.evaluate(kw["model"], state.global_step)
            self.history.append({"step": state.global_step, **figures})
            state.log_history.append({"step": state.global_step, "figures": self.history[-1]})
            print(
                "  ".join(f"{name} {value:.3f}" for name, value in figures.items()),
                file=sys.stderr,
                flush=True,
            )


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
    found = folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}") if resume == "auto" else ()  # written last
    return max((int(file.parent.name.rsplit("-", 1)[1]) for file in found), default=0)


def remove_checkpoints(folder: Path) -> None:
    """Forget what an earlier run left in `folder`."""
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old)


def fit(
    model: nn.Module,
    loss: Loss,
    batch: Callable[[int], Batch],
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
) -> float:
    """Train `model` in place, with a progress bar and checkpoints; returns the last mean loss.

    `batch(k)` gives the tensors of step k. `resume="auto"` continues from the folder's last checkpoint; any
    other value starts anew and removes the checkpoints that lie there.
    """
    start = last_step(folder, resume)
    if not start:
        remove_checkpoints(folder)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        adam_beta2=0.98,
        bf16=wants_bf16(precision),
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=50,
        save_strategy="no",
        save_total_limit=2,
        save_only_model=False,
        ignore_data_skip=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=False,
        log_level="warning",
    )
    every: list[TrainerCallback] = [EveryMinutes(checkpoint_minutes), *callbacks]
    trainer = LossTrainer(
        model=model,
        args=arguments,
        loss=loss,
        batches=Stream(batch, start),
        callbacks=every + ([evaluation] if evaluation else []),
    )
    checkpoint = folder / f"checkpoint-{start}"
    if start < steps:
        trainer.train(resume_from_checkpoint=str(checkpoint) if start else None)
    elif start:
        trainer.restore(checkpoint)
        if evaluation:
            evaluation.recall(trainer.state)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1]) if losses else float("nan")
