"""A LLaVA of 40,000 parameters in the shape of TinyWorld's, and recipes of a few steps for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from modint_training.data.batches import twin_batches
from modint_training.method.batch import Batch
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import load_recipe
from modint_training.tinyworld.model import build_config
from modint_training.tinyworld.recipe import PretrainRecipe
from modint_training.tinyworld.source import training_source

WIDTH = 32


def small_config(processor: Any, *, layers: int = 1) -> Any:
    """TinyWorld's own configuration, one head wide, its language model `layers` high."""
    config = build_config(processor.tokenizer)
    for part in (config.vision_config, config.text_config):
        part.hidden_size = part.intermediate_size = WIDTH
        part.num_hidden_layers = part.num_attention_heads = 1
    config.text_config.num_hidden_layers = layers
    config.text_config.num_key_value_heads = 1
    return config


def small_model(processor: Any, *, seed: int = 0, layers: int = 1) -> Any:
    """A freshly initialised small model."""
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(small_config(processor, layers=layers))


def save_small_base(processor: Any, folder: Path) -> Path:
    """A model folder as the engine would load it."""
    small_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def lora_recipe(base: Path | str, *overrides: str) -> TuneRecipe:
    """The bundled recipe, two steps long and without its attack."""
    short = (
        f"base={base}",
        "attack=null",
        "rank=2",
        "steps=2",
        "batch=8",
        "warmup_steps=1",
        "evaluate_steps=2",
        "evaluate_items=4",
    )
    recipe = load_recipe("robust-lora", [*short, "precision=fp32", *overrides])
    assert isinstance(recipe, TuneRecipe)
    return recipe


def pretrain_recipe(*overrides: str) -> PretrainRecipe:
    """The bundled recipe, a step of each warm-up and two of the whole."""
    warm_up = (
        "tower_steps=1",
        "tower_batch=8",
        "language_steps=1",
        "language_batch=8",
    )
    short = ("steps=2", "batch=8", "warmup_steps=1", "evaluate_items=4", "evaluate_steps=2", "precision=fp32")
    recipe = load_recipe("tinyworld-base", [*warm_up, *short, *overrides])
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def tinyworld_batches(
    recipe: TuneRecipe, processor: Any, *, rank: int = 0, ranks: int = 1
) -> Callable[[int], list[Batch]]:
    """Batches of twins of TinyWorld's own items."""
    return twin_batches(recipe, processor, training_source(recipe), rank=rank, ranks=ranks)
