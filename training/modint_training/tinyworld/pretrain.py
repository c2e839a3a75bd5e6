"""The demo world's base from scratch: tower on labels, language on look-up, then both together on answers."""

import dataclasses
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modint_guard.data.item import Item
from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError
from modint_training.data.collate import Encoded, collate, encode, pixels
from modint_training.loop.trainer import (
    Batch,
    Evaluation,
    fit,
    last_step,
    remove_checkpoints,
    seed_everything,
)
from modint_training.method.labels import IGNORED
from modint_training.method.ranks import ranks
from modint_training.recipe import PretrainRecipe
from modint_training.tinyworld import draw, language, suite
from modint_training.tinyworld import model as architecture
from modint_training.tinyworld.guide import Link, links
from modint_training.tinyworld.recall import Row, look_up_row, picture_row, text_row
from modint_training.tinyworld.scenes import MOST, counts, scene
from modint_training.tinyworld.source import encode_recall, watch
from modint_training.tinyworld.tasks import COLOURS, DIGITS, TASKS, build, show_digit

Guided = tuple[Encoded, list[Link]]  # a row and where attention ought to go in it
MOST_WORKERS = 8
PHASES = ("tower", "language", "joint")  # folders of checkpoints
LOOK_UPS = ("lookup_colour", "lookup_shape")


def pretrain(
    recipe: PretrainRecipe, folder: Path, *, resume: str = "no"
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Train the base, with checkpoints under `folder`; returns (model, processor, validation figures).
    ConfigError where several processes are to: its batches are not dealt out."""
    if ranks() > 1:
        raise ConfigError(
            f"kind: pretrain trains in one process, and {ranks()} were started: leave `accelerate launch` out"
        )
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
        partial(guided_loss, weight=recipe.guide),
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
    shown = pixels(pictures, processor).to(_device(model))  # the warm-ups left the model on the GPU, if any
    states = model.model.vision_tower(pixel_values=shown).last_hidden_state
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
        # Drawing pictures takes longer than a GPU's step: there every second core draws.
        "workers": min(MOST_WORKERS, max(1, (os.cpu_count() or 1) // 2)),
    }


def training_batches(recipe: PretrainRecipe, processor: Any) -> Callable[[int], Batch]:
    """Batch k of the joint phase: its items sorted by length and cut into guided parts, padded apart."""
    whole = suite.Mixture(**recipe.mixture.model_dump())

    def batch(step: int) -> Batch:
        indices = range(step * recipe.batch, (step + 1) * recipe.batch)
        mixture = stage_of(recipe, whole, step)
        items = (suite.training_item(index, seed=recipe.seed, mixture=mixture) for index in indices)
        return guided_parts([_asked(item, processor) for item in items], recipe.micro_batches, processor)

    return batch


def stage_of(recipe: PretrainRecipe, whole: suite.Mixture, step: int) -> suite.Mixture:
    """The mixture at a step: the recipe's, with what the last stage that has begun changes."""
    begun = [stage for stage in recipe.stages if stage.start <= step]
    if not begun:
        return whole
    changes = begun[-1].model_dump(exclude={"start"}, exclude_none=True)
    return dataclasses.replace(whole, **changes)


def guided_parts(rows: list[Guided], count: int, processor: Any) -> Batch:
    """A batch as `count` parts of rows of like length, each padded by itself.

    Every part has `links`  # (N, 4), int64: rows of (row, layer, query, key), where attention ought to go.
    """
    rows = sorted(rows, key=lambda guided: len(guided[0].ids))
    size = -(-len(rows) // count)
    return {"parts": [_part(rows[at : at + size], processor) for at in range(0, len(rows), size)]}


def _part(rows: list[Guided], processor: Any) -> Batch:
    found = [(at, *link) for at, (_, wanted) in enumerate(rows) for link in wanted]
    made = torch.tensor(found, dtype=torch.long).reshape(-1, 4)
    return {**collate([row for row, _ in rows], processor), "links": made}


def guided_loss(net: nn.Module, batch: Batch, weight: float) -> Tensor:
    """Cross-entropy of the answer tokens, a mean over rows of each row's mean, so that the number of parts
    does not matter, plus `weight` x the mean of -log(attention paid) over the links of all parts."""
    losses, paid = [], []
    for part in batch["parts"]:
        inputs = {name: tensor for name, tensor in part.items() if name not in ("links", "labels")}
        out = net(**inputs, use_cache=False, output_attentions=True)
        losses.append(row_losses(out.logits, part["labels"]))
        row, layer, query, key = part["links"].unbind(-1)
        heads = torch.stack([attention[:, 0] for attention in out.attentions])  # (layers, B, L, L)
        paid.append(heads[layer, row, query, key].float())
    answers = torch.cat(losses).mean()
    looked = torch.cat(paid)
    return answers - weight * looked.clamp_min(1e-6).log().mean() if len(looked) else answers


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Each row's mean cross-entropy, in nats, over its labelled tokens, of which it has at least one  # (B,)

    `logits`  # (B, L, V); `labels`  # (B, L), IGNORED where there is none.
    """
    told = labels[:, 1:]
    lost = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), told, ignore_index=IGNORED, reduction="none"
    )
    return lost.sum(dim=1) / (told != IGNORED).sum(dim=1)


def warm_up_language(model: Any, processor: Any, recipe: PretrainRecipe, folder: Path, resume: str) -> None:
    """Teach the language model to look things up: in lists, sentences, captions, pictures; and small sums."""
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


AS_ASKED = 0.3  # of look-ups are one question as the suite asks it; the others are rows of many


def look_up_batches(recipe: PretrainRecipe, processor: Any) -> Callable[[int], Batch]:
    """Batch k of the language warm-up: rows of many short answers, questions for a letter, look-ups."""

    def batch(step: int) -> Batch:
        indices = range(step * recipe.language_batch, (step + 1) * recipe.language_batch)
        rows = [_look_up(recipe, index, processor) for index in indices]
        return guided_parts(rows, recipe.micro_batches, processor)

    return batch


def _look_up(recipe: PretrainRecipe, index: int, processor: Any) -> Guided:
    rng = seeded("language", recipe.seed, index)
    kinds = ("picture", "drill", "look-up", "text")
    given = (recipe.language_pictures, recipe.language_drill, recipe.language_look_up)
    (kind,) = rng.choices(kinds, [*given, max(0.0, 1 - sum(given))])
    item_id = f"train-{recipe.seed}-warm-up-{index}"
    if kind == "drill":
        asked = build(rng.choice(list(TASKS.values())), item_id, rng, "train", form="letter")
        return encode(suite.letter_drill(asked, rng), processor), []
    if kind == "look-up" and rng.random() < AS_ASKED:
        asked = build(TASKS[rng.choice(LOOK_UPS)], item_id, rng, "train", form=rng.choice(("word", "letter")))
        return _asked(asked, processor)
    if kind == "look-up":
        return _recalled(look_up_row(rng), processor)
    return encode_recall(picture_row(rng) if kind == "picture" else text_row(rng), processor), []


def _asked(item: Item, processor: Any) -> Guided:
    """An item as it is asked; only look-ups have links."""
    row = encode(item, processor)
    asks = [(len(row.ids) - row.answer_length - 1, item.answer)] if item.task in LOOK_UPS else []
    return row, links(row.ids, asks, processor.tokenizer) if asks else []


def _recalled(row: Row, processor: Any) -> Guided:
    encoded = encode_recall(row, processor)
    answers = [at for at, label in enumerate(encoded.labels) if label != IGNORED]  # each is one token
    asks = [(at - 1, wanted) for at, (_, wanted) in zip(answers, row.queries, strict=True)]
    return encoded, links(encoded.ids, asks, processor.tokenizer)


CELLS = len(draw.SHAPES) * len(COLOURS)
DIGIT_PICTURES = 0.3  # of the tower's pictures; the others are scenes


class TowerHeads(nn.Module):
    """The vision tower with linear heads on class token and mean patch: a digit's label, a scene's counts."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.digit = nn.Linear(2 * width, len(DIGITS))
        self.counts = nn.Linear(2 * width, CELLS * (MOST + 1))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the digit  # (B, 10), and of each cell's count  # (B, shapes x colours, 8)."""
        states = self.tower(pixel_values=pixel_values).last_hidden_state  # (B, 1 + patches, D)
        pooled = torch.cat([states[:, 0], states[:, 1:].mean(dim=1)], dim=-1)
        return self.digit(pooled).float(), self.counts(pooled).float().unflatten(1, (CELLS, MOST + 1))


def tower_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of digits, and of scenes' counts summed over shapes and colours; mean over pictures."""
    digit, cells = net(batch["pixel_values"])
    of_digits = nn.functional.cross_entropy(digit, batch["digit"], reduction="sum", ignore_index=IGNORED)
    of_scenes = nn.functional.cross_entropy(
        cells.flatten(0, 1), batch["counts"].flatten(), reduction="sum", ignore_index=IGNORED
    )
    return (of_digits + of_scenes) / len(batch["digit"])


def tower_batch(split: suite.Split, seed: int, indices: range, processor: Any) -> Batch:
    """Digits and scenes in about equal parts; the label that a picture has not is IGNORED."""
    pictures, digits, cells = [], [], []
    for index in indices:
        rng = seeded("tower", split, seed, index)
        if rng.random() < DIGIT_PICTURES:
            answer = rng.choice(DIGITS)
            picture, _ = show_digit(answer, rng, split)
            digits.append(int(answer))
            cells.append([IGNORED] * CELLS)
        else:
            seen = scene(rng)
            picture = seen.image
            digits.append(IGNORED)
            cells.append(counts(seen.figures))
        pictures.append(picture)
    return {
        "pixel_values": pixels(pictures, processor),
        "digit": torch.tensor(digits),
        "counts": torch.tensor(cells),
    }


def warm_up_tower(model: Any, processor: Any, recipe: PretrainRecipe, folder: Path, resume: str) -> None:
    """Teach the vision tower what single pictures show: their digit, or all figures of the scene."""
    print("warming up the vision tower on labels", file=sys.stderr, flush=True)
    size = recipe.tower_batch
    fit(
        TowerHeads(model.model.vision_tower, model.config.vision_config.hidden_size),
        tower_loss,
        lambda step: tower_batch("train", recipe.seed, range(step * size, (step + 1) * size), processor),
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
    seen = tower_batch("validation", 0, range(8 * count), processor)

    @torch.no_grad()
    def evaluate(net: nn.Module, step: int) -> dict[str, float]:
        digit, cells = (logits.argmax(-1).cpu() for logits in net(seen["pixel_values"].to(_device(net))))
        digits = seen["digit"] != IGNORED
        return {
            "digit": float((digit == seen["digit"])[digits].float().mean()),
            "scene": float((cells == seen["counts"]).all(dim=1)[~digits].float().mean()),
        }

    return evaluate


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
