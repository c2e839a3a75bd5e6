"""A LoRA adapter on the language model, trained on clean and perturbed twins."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoProcessor, LlavaForConditionalGeneration

from modint_guard.errors import ConfigError
from modint_guard.item import FAMILIES, Family, Form, Item
from modint_guard.models import bundled
from modint_guard.perturb import seeded
from modint_training.collate import collate, encode
from modint_training.config import LoraRecipe
from modint_training.families import family_of
from modint_training.losses import consistency_loss, task_loss
from modint_training.predict import watch
from modint_training.tinyworld import suite, tasks
from modint_training.trainer import Batch, Evaluation, fit, seed_everything
from modint_training.views import check_kinds, clean_view, twin


def load_base(name: str) -> tuple[Any, Any]:
    """The model and processor of a bundled model name or a model folder."""
    folder = Path(name) if Path(name).is_dir() else bundled(name)
    described = folder / "config.json"
    if not described.is_file():
        raise ConfigError(
            f"no base model {name!r}: neither a model folder nor a bundled model; train it first"
        )
    family_of(json.loads(described.read_text("utf-8")).get("model_type", "unknown"))
    return LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def train_lora(
    recipe: LoraRecipe, folder: Path, *, resume: str = "no"
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Train the adapter; returns (PEFT model, processor, validation figures by step)."""
    check_kinds(recipe.perturbations, controls=False)
    check_kinds(recipe.controls, controls=True)
    seed_everything(recipe.seed)
    base, processor = load_base(recipe.base)
    base.set_attn_implementation("eager")
    model = get_peft_model(base, lora_config(recipe, base.config.model_type))
    evaluation = Evaluation(watch(processor, recipe.evaluate_items), recipe.evaluate_steps)
    print(f"training {recipe.name} on twins", file=sys.stderr, flush=True)
    fit(
        model,
        twin_loss(recipe),
        twin_batches(recipe, processor),
        folder=folder / "lora",
        steps=recipe.steps,
        lr=recipe.lr,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        precision=recipe.precision,
        seed=recipe.seed,
        checkpoint_minutes=recipe.checkpoint_minutes,
        resume=resume,
        evaluation=evaluation,
    )
    return model, processor, evaluation.history


def lora_config(recipe: LoraRecipe, model_type: str) -> LoraConfig:
    """Adapters on the language model's linear layers only; vision tower and projector stay as they are."""
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=family_of(model_type).lora_targets,
        task_type="CAUSAL_LM",
    )


def twin_loss(recipe: LoraRecipe) -> Callable[[nn.Module, Batch], Tensor]:
    """Task loss on every row, consistency between each twin and its clean row."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        clean_row = batch["clean_row"]
        inputs = {name: value for name, value in batch.items() if name not in ("clean_row", "labels")}
        logits = model(**inputs, use_cache=False).logits
        total = recipe.task_weight * task_loss(logits, batch["labels"])
        if recipe.consistency == "none":
            return total
        return total + recipe.consistency_weight * consistency_loss(
            logits, batch["labels"], clean_row, recipe.consistency
        )

    return loss


def twin_batches(recipe: LoraRecipe, processor: Any) -> Callable[[int], Batch]:
    """Batch k: examples in the quotas of the recipe, each followed by its twin where it has one."""
    wheel = [family for family, quota in zip(FAMILIES, recipe.quotas, strict=True) for _ in range(quota)]

    def batch(step: int) -> Batch:
        rows: list[Item] = []
        clean_row: list[int] = []
        for slot in range(recipe.batch):
            index = step * recipe.batch + slot
            rng = seeded("lora", recipe.seed, index)
            item = _example(wheel[index % len(wheel)], index, recipe)
            rows.append(clean_view(item))
            clean_row.append(-1)
            other = twin(item, recipe.perturbations, recipe.controls, recipe.control_share, rng)
            if other is not None:
                clean_row.append(len(rows) - 1)
                rows.append(other)
        return {
            **collate([encode(row, processor) for row in rows], processor),
            "clean_row": torch.tensor(clean_row),
        }

    return batch


def _example(family: Family, index: int, recipe: LoraRecipe) -> Item:
    rng = seeded("lora-item", recipe.seed, index)
    task = rng.choice(suite.tasks_of(family))
    form: Form = "letter" if rng.random() < recipe.letter else "word"
    return tasks.build(task, f"train-{recipe.seed}-lora-{index}", rng, "train", form=form)
