"""The demo world's base from scratch: tower on labels, language on look-up, then both together on answers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modint_guard.item import Item
from modint_guard.perturb import seeded
from modint_training.collate import Encoded, collate, encode, encode_recall, pixels
from modint_training.config import PretrainRecipe
from modint_training.predict import watch
from modint_training.tinyworld import language, suite
from modint_training.tinyworld import model as architecture
from modint_training.tinyworld.recall import recall_row
from modint_training.tinyworld.tasks import TASKS, build
from modint_training.trainer import Batch, Evaluation, fit, last_step, remove_checkpoints, seed_everything


def pretrain(
    recipe: PretrainRecipe, folder: Path, *, resume: str = "no"
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Train the base, with checkpoints under `folder`; returns (model, processor, validation figures)."""
    seed_everything(recipe.seed)
    processor = language.build_processor(language.train_tokenizer(seed=recipe.seed))
    model = architecture.build_model(processor.tokenizer)
    # Short rows: plain matrix products are faster on a CPU than its flash attention.
    model.set_attn_implementation("eager")
    if not last_step(folder / "joint", resume):
        remove_checkpoints(folder / "joint")
        if recipe.tower_steps:
            warm_up_tower(model, processor, recipe, folder / "tower", resume)
        if recipe.language_steps:
            warm_up_language(model, processor, recipe, folder / "language", resume)
        match_scale(model, processor)
    evaluation = Evaluation(watch(processor, recipe.evaluate_items), recipe.evaluate_steps)
    print("training the whole model on answers", file=sys.stderr, flush=True)
    fit(
        model,
        answer_loss,
        training_batches(recipe, processor),
        folder=folder / "joint",
        steps=recipe.steps,
        lr=recipe.lr,
        warmup_steps=recipe.warmup_steps,
        evaluation=evaluation,
        resume=resume,
        callbacks=[FrozenUntil(model.model.vision_tower, recipe.tower_frozen_steps)],
        **_common(recipe),
    )
    model.set_attn_implementation("sdpa")
    return model, processor, evaluation.history


class FrozenUntil(TrainerCallback):
    """Keep a module as it is for the first steps, whose noise would undo what its warm-up taught it."""

    def __init__(self, module: nn.Module, steps: int) -> None:
        self.module = module
        self.steps = steps

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.module.requires_grad_(state.global_step >= self.steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.module.requires_grad_(True)


@torch.no_grad()
def match_scale(model: Any, processor: Any) -> None:
    """Scale the fresh projector so that picture positions enter with the mean norm of token embeddings.

    The warmed-up tower's states are large: unscaled, they would drown what the first layers add to them.
    """
    pictures = [item.image for item in suite.items("image-heavy", "train", 64) if item.image]
    states = model.model.vision_tower(pixel_values=pixels(pictures, processor)).last_hidden_state
    norm = model.model.multi_modal_projector(states).norm(dim=-1).mean()
    scale = model.get_input_embeddings().weight.norm(dim=-1).mean() / norm
    for parameter in model.model.multi_modal_projector.linear_2.parameters():
        parameter.mul_(scale)


def _common(recipe: PretrainRecipe) -> dict[str, Any]:
    return {
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "checkpoint_minutes": recipe.checkpoint_minutes,
    }


def training_batches(recipe: PretrainRecipe, processor: Any) -> Callable[[int], Batch]:
    """Batch k of the joint phase: its items sorted by length and cut into parts that are padded apart."""
    mixture = suite.Mixture(**recipe.mixture.model_dump())
    part = -(-recipe.batch // recipe.micro_batches)

    def batch(step: int) -> Batch:
        indices = range(step * recipe.batch, (step + 1) * recipe.batch)
        items = (suite.training_item(index, seed=recipe.seed, mixture=mixture) for index in indices)
        rows = sorted((encode(item, processor) for item in items), key=lambda row: len(row.ids))
        return {
            "parts": [collate(rows[start : start + part], processor) for start in range(0, len(rows), part)]
        }

    return batch


def answer_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the answer tokens over all parts of a batch."""
    losses = [net(**part, use_cache=False).loss * len(part["labels"]) for part in batch["parts"]]
    return torch.stack(losses).sum() / sum(len(part["labels"]) for part in batch["parts"])


def warm_up_language(model: Any, processor: Any, recipe: PretrainRecipe, folder: Path, resume: str) -> None:
    """Teach the language model to look things up in text: lists, sentences, lettered options."""
    print("warming up the language model on look-up", file=sys.stderr, flush=True)
    fit(
        model,
        answer_loss,
        look_up_batches(recipe, processor),
        folder=folder,
        steps=recipe.language_steps,
        lr=recipe.language_lr,
        warmup_steps=min(150, recipe.language_steps // 4),
        resume=resume,
        **_common(recipe),
    )


def look_up_batches(recipe: PretrainRecipe, processor: Any) -> Callable[[int], Batch]:
    """Batch k of the language warm-up: rows of many short answers, and questions for an option's letter."""
    tasks = list(TASKS.values())

    def row(index: int) -> Encoded:
        rng = seeded("language", recipe.seed, index)
        if rng.random() >= recipe.language_drill:
            return encode_recall(*recall_row(rng), processor)
        asked = build(rng.choice(tasks), f"train-{recipe.seed}-drill-{index}", rng, "train", form="letter")
        return encode(suite.letter_drill(asked, rng), processor)

    def batch(step: int) -> Batch:
        indices = range(step * recipe.language_batch, (step + 1) * recipe.language_batch)
        return {"parts": [collate([row(index) for index in indices], processor)]}

    return batch


class TowerHeads(nn.Module):
    """The vision tower with one linear head a sub-task, reading class token and mean patch."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleDict(
            {task.name: nn.Linear(2 * width, len(task.choices)) for task in _labelled()}
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.tower(pixel_values=pixel_values).last_hidden_state  # (B, 1 + patches, D)
        return torch.cat([states[:, 0], states[:, 1:].mean(dim=1)], dim=-1)


def _labelled() -> tuple[Any, ...]:
    return suite.tasks_of("image-heavy")


def tower_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of each picture's own sub-task."""
    states = net(batch["pixel_values"])
    loss = states.new_zeros(())
    for number, (_, head) in enumerate(net.heads.items()):
        mine = batch["task"] == number
        if mine.any():
            loss = loss + nn.functional.cross_entropy(
                head(states[mine]).float(), batch["label"][mine], reduction="sum"
            )
    return loss / len(batch["label"])


def warm_up_tower(model: Any, processor: Any, recipe: PretrainRecipe, folder: Path, resume: str) -> None:
    """Teach the vision tower the labels of single pictures."""
    print("warming up the vision tower on labels", file=sys.stderr, flush=True)
    tasks = _labelled()
    weights = [3.0 if task.name == "digit" else 1.0 for task in tasks]

    def one(index: int) -> tuple[int, Item]:
        rng = seeded("tower", recipe.seed, index)
        number = rng.choices(range(len(tasks)), weights)[0]
        return number, build(tasks[number], f"tower-{index}", rng, "train", form="word")

    def batch(step: int) -> Batch:
        drawn = [one(step * recipe.tower_batch + i) for i in range(recipe.tower_batch)]
        return {
            "pixel_values": pixels([item.image for _, item in drawn if item.image], processor),
            "task": torch.tensor([number for number, _ in drawn]),
            "label": torch.tensor([tasks[number].choices.index(item.answer) for number, item in drawn]),
        }

    net = TowerHeads(model.model.vision_tower, model.config.vision_config.hidden_size)
    fit(
        net,
        tower_loss,
        batch,
        folder=folder,
        steps=recipe.tower_steps,
        lr=recipe.tower_lr,
        warmup_steps=min(200, recipe.tower_steps // 10),
        resume=resume,
        evaluation=Evaluation(
            _tower_accuracy(processor, recipe.evaluate_items), max(1, recipe.tower_steps // 4)
        ),
        **_common(recipe),
    )


def _tower_accuracy(processor: Any, count: int) -> Callable[[nn.Module, int], dict[str, float]]:
    items = suite.items("image-heavy", "validation", count * len(_labelled()))

    @torch.no_grad()
    def evaluate(net: nn.Module, step: int) -> dict[str, float]:
        pictures = pixels([item.image for item in items if item.image], processor)
        states = net(pictures.to(next(net.parameters()).device))
        figures = {}
        for task in _labelled():
            mine = [index for index, item in enumerate(items) if item.task == task.name]
            guess = net.heads[task.name](states[mine]).argmax(-1).cpu()
            truth = torch.tensor([task.choices.index(items[index].answer) for index in mine])
            figures[task.name] = float((guess == truth).float().mean())
        return figures

    return evaluate
