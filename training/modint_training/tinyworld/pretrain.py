"""TinyWorld's base model from scratch: vision tower on labels, language on look-up, then both on answers."""

import dataclasses
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modint_guard.data.item import Item
from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError
from modint_training.data.collate import encode
from modint_training.loop.trainer import (
    Evaluation,
    Trained,
    fit,
    last_step,
    remove_checkpoints,
    seed_everything,
)
from modint_training.loop.validation import Figures, accuracy_figures
from modint_training.method.families import clip_pixels
from modint_training.method.labels import IGNORED
from modint_training.method.ranks import started_processes
from modint_training.tinyworld import language, suite
from modint_training.tinyworld import model as architecture
from modint_training.tinyworld.guide import links
from modint_training.tinyworld.guided import GuidedBatch, GuidedRow, guided_batch, guided_loss
from modint_training.tinyworld.recall import RecallRow, encode_recall, look_up_row, picture_row, text_row
from modint_training.tinyworld.recipe import PretrainRecipe
from modint_training.tinyworld.source import validation_sets
from modint_training.tinyworld.tasks import TASKS, build
from modint_training.tinyworld.tower import TowerBatch, TowerHeads, tower_accuracy, tower_batch, tower_loss

MAX_WORKERS = 8
PHASES = ("tower", "language", "joint")  # folders of checkpoints
LOOK_UPS = ("lookup_colour", "lookup_shape")


def pretrain(recipe: PretrainRecipe, folder: Path, *, resume: str = "no") -> Trained:
    """Train the base model, with checkpoints under `folder`.

    Raises ConfigError if several processes were started: its batches are not shared out.
    """
    if started_processes() > 1:
        raise ConfigError(
            f"kind: pretrain trains in one process, and {started_processes()} were started: leave "
            "`accelerate launch` out"
        )
    seed_everything(recipe.seed)
    processor = language.build_processor(language.train_tokenizer(seed=recipe.seed))
    model = architecture.build_model(processor.tokenizer)
    # Rows are short: plain matrix products are faster on a CPU than its flash attention.
    model.set_attn_implementation("eager")
    if not last_step(folder / "joint", resume):
        remove_checkpoints(folder / "joint")
        if recipe.tower_steps:
            warm_up_tower(model, processor, recipe, folder / "tower", resume)
        if recipe.language_steps:
            warm_up_language(model, processor, recipe, folder / "language", resume)
        match_scale(model, processor)
    history = train_jointly(model, processor, recipe, folder / "joint", resume)
    model.set_attn_implementation("sdpa")
    return Trained(model, processor, history)


def train_jointly(
    model: Any, processor: Any, recipe: PretrainRecipe, folder: Path, resume: str
) -> list[Figures]:
    """Train the whole model on answers; returns the validation figures by step."""
    watched = validation_sets(recipe.evaluate_items)
    evaluation = Evaluation(accuracy_figures(watched, processor), recipe.evaluate_steps)
    print("training the whole model on answers", file=sys.stderr, flush=True)
    fit(
        model,
        partial(guided_loss, weight=recipe.guide),
        training_batches(recipe, processor),
        folder=folder,
        steps=recipe.steps,
        lr=recipe.lr,
        warmup_steps=recipe.warmup_steps,
        evaluation=evaluation,
        resume=resume,
        callbacks=[FrozenUntil(model.model.vision_tower, recipe.tower_frozen_steps)],
        **_common(recipe),
    )
    return evaluation.history


class FrozenUntil(TrainerCallback):
    """Keep a module frozen for the first steps, whose noise would undo its warm-up."""

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
    device = next(model.parameters()).device  # the warm-ups left the model on the GPU, if there is one
    states = model.model.vision_tower(
        pixel_values=clip_pixels(pictures, processor).to(device)
    ).last_hidden_state
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
        # Drawing pictures takes longer than a GPU's step: half of the cores draw.
        "workers": min(MAX_WORKERS, max(1, (os.cpu_count() or 1) // 2)),
    }


def training_batches(recipe: PretrainRecipe, processor: Any) -> Callable[[int], list[GuidedBatch]]:
    """The batch of step k of the joint phase, in parts of similar length."""
    mixture = suite.Mixture(**recipe.mixture.model_dump())

    def batches(step: int) -> list[GuidedBatch]:
        indices = range(step * recipe.batch, (step + 1) * recipe.batch)
        of_stage = stage_of(recipe, mixture, step)
        items = (suite.training_item(index, seed=recipe.seed, mixture=of_stage) for index in indices)
        rows = [_item_row(item, processor) for item in items]
        return [guided_batch(rows, recipe.micro_batches, processor)]

    return batches


def stage_of(recipe: PretrainRecipe, mixture: suite.Mixture, step: int) -> suite.Mixture:
    """The mixture at a step: the recipe's, with the changes of the last stage that has begun."""
    begun = [stage for stage in recipe.stages if stage.start <= step]
    if not begun:
        return mixture
    changes = begun[-1].model_dump(exclude={"start"}, exclude_none=True)
    return dataclasses.replace(mixture, **changes)


def warm_up_language(model: Any, processor: Any, recipe: PretrainRecipe, folder: Path, resume: str) -> None:
    """Teach the language model to look things up (in lists, sentences, captions, pictures) and small sums."""
    print("warming up the language model on look-up", file=sys.stderr, flush=True)
    fit(
        model,
        partial(guided_loss, weight=recipe.guide),
        look_up_batches(recipe, processor),
        folder=folder,
        steps=recipe.language_steps,
        lr=recipe.language_lr,
        warmup_steps=min(150, recipe.language_steps // 4),
        resume=resume,
        callbacks=[FrozenUntil(model.model.vision_tower, recipe.language_steps)],
        **_common(recipe),
    )


SUITE_LOOK_UPS = 0.3  # of look-ups are one question as the suite asks it; the others are rows of many


def look_up_batches(recipe: PretrainRecipe, processor: Any) -> Callable[[int], list[GuidedBatch]]:
    """The batch of step k of the language warm-up: rows of many short answers, letter drills, look-ups."""

    def batches(step: int) -> list[GuidedBatch]:
        indices = range(step * recipe.language_batch, (step + 1) * recipe.language_batch)
        rows = [_look_up(recipe, index, processor) for index in indices]
        return [guided_batch(rows, recipe.micro_batches, processor)]

    return batches


def _look_up(recipe: PretrainRecipe, index: int, processor: Any) -> GuidedRow:
    rng = seeded("language", recipe.seed, index)
    kinds = ("picture", "drill", "look-up", "text")
    shares = (recipe.language_pictures, recipe.language_drill, recipe.language_look_up)
    (kind,) = rng.choices(kinds, [*shares, max(0.0, 1 - sum(shares))])
    item_id = f"train-{recipe.seed}-warm-up-{index}"
    if kind == "drill":
        item = build(rng.choice(list(TASKS.values())), item_id, rng, "train", form="letter")
        return GuidedRow(encode(suite.letter_drill(item, rng), processor), [])
    if kind == "look-up" and rng.random() < SUITE_LOOK_UPS:
        item = build(TASKS[rng.choice(LOOK_UPS)], item_id, rng, "train", form=rng.choice(("word", "letter")))
        return _item_row(item, processor)
    if kind == "look-up":
        return _recall_row(look_up_row(rng), processor)
    return GuidedRow(encode_recall(picture_row(rng) if kind == "picture" else text_row(rng), processor), [])


def _item_row(item: Item, processor: Any) -> GuidedRow:
    """An item as the suite asks it; only look-ups have links."""
    row = encode(item, processor)
    asks = [(len(row.ids) - row.answer_length - 1, item.answer)] if item.task in LOOK_UPS else []
    return GuidedRow(row, links(row.ids, asks, processor.tokenizer) if asks else [])


def _recall_row(recall: RecallRow, processor: Any) -> GuidedRow:
    row = encode_recall(recall, processor)
    answers = [at for at, label in enumerate(row.labels) if label != IGNORED]  # each is one token
    asks = [(at - 1, wanted) for at, (_, wanted) in zip(answers, recall.queries, strict=True)]
    return GuidedRow(row, links(row.ids, asks, processor.tokenizer))


def warm_up_tower(model: Any, processor: Any, recipe: PretrainRecipe, folder: Path, resume: str) -> None:
    """Teach the vision tower what single pictures show: their digit, or all figures of the scene."""
    print("warming up the vision tower on labels", file=sys.stderr, flush=True)
    size = recipe.tower_batch

    def batches(step: int) -> list[TowerBatch]:
        return [tower_batch("train", recipe.seed, range(step * size, (step + 1) * size), processor)]

    fit(
        TowerHeads(model.model.vision_tower, model.config.vision_config.hidden_size),
        tower_loss,
        batches,
        folder=folder,
        steps=recipe.tower_steps,
        lr=recipe.tower_lr,
        warmup_steps=min(200, recipe.tower_steps // 10),
        resume=resume,
        evaluation=Evaluation(
            tower_accuracy(processor, 8 * recipe.evaluate_items), max(1, recipe.tower_steps // 4)
        ),
        **_common(recipe),
    )
