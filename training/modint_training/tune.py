"""Fine-tuning on clean and perturbed twins: an adapter on the language model, or the weights themselves."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from modint_guard.data import DataSet
from modint_guard.errors import ConfigError
from modint_guard.models import check_servable, check_tower_servable, located
from modint_training.attack import Attack
from modint_training.batches import (
    Pools,
    Source,
    check_dealt_out,
    data_source,
    pools_of,
    tinyworld_source,
    twin_batches,
)
from modint_training.config import TINYWORLD, TuneRecipe
from modint_training.curves import draw_curves
from modint_training.families import family_of
from modint_training.lengths import check_lengths, check_validation
from modint_training.method import Meter, Weights, log_line, step_loss
from modint_training.passes import bare
from modint_training.predict import BASELINE_ITEMS
from modint_training.ranks import is_first_process, rank, ranks
from modint_training.reading import read_examples
from modint_training.run_folder import check_taken_up, rows_hash, write_record
from modint_training.trainer import Batch, Evaluation, StepLog, fit, seed_everything
from modint_training.views import check_kinds
from modint_training.watching import Watched, figures_of, own_watched, tinyworld_watched


def load_base(
    name: str, *, weights: Path | None = None, placed: bool = True, **loading: Any
) -> tuple[Any, Any]:
    """The model and processor of a bundled model name or a model folder, or with the weights of a checkpoint
    of it; `loading` goes to `from_pretrained`.

    The model is on the GPU, where there is one, unless `loading` says where (4-bit weights) or it is not to
    be `placed`, since a Trainer does that by rank.
    """
    folder = located(name)
    family_of(model_type_of(name))
    model = AutoModelForImageTextToText.from_pretrained(weights or folder, **loading)
    if placed and "device_map" not in loading:
        model = model.to(fastest_device())
    return model, AutoProcessor.from_pretrained(folder)


def fastest_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_type_of(name: str) -> str:
    """The model type of a bundled model name or a model folder; ConfigError where there is no model."""
    described = located(name) / "config.json"
    if not described.is_file():
        raise ConfigError(
            f"no base model {name!r}: neither a model folder nor a bundled model; train it first"
        )
    return str(json.loads(described.read_text("utf-8")).get("model_type", "unknown"))


def tune(
    recipe: TuneRecipe, folder: Path, *, resume: str = "no", command: str | None = None
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Train by the recipe, with checkpoints, `log.jsonl` and `curves.png` under `folder`; returns (model,
    processor, validation figures by step). The model is PEFT's, or for `kind: full` the base itself.
    `command` is what was typed, for the record."""
    check_kinds(recipe.perturbations, controls=False)
    check_kinds(recipe.controls, controls=True)
    check_device(recipe, cuda=torch.cuda.is_available())
    check_reports(recipe)
    check_dealt_out(recipe, ranks())
    seed_everything(recipe.seed)
    check_served(recipe)
    rows = rows_hash(recipe)
    if resume == "auto":
        check_taken_up(folder, recipe, rows)
    base, processor = load_base(recipe.base, placed=False, **loading_of(recipe))
    model = trainable(base, recipe)
    source, steps = source_of(recipe, base.config, processor)
    meter = Meter()
    watched = watched_of(recipe, base.config, processor)
    evaluation = Evaluation(figures_of(watched, processor), recipe.evaluate_steps)
    log = StepLog(folder / "log.jsonl", lambda: log_line(meter.take()))
    if is_first_process():
        print(f"training {recipe.name} on twins", file=sys.stderr, flush=True)
        write_record(folder, recipe, rows, command=command)
    try:
        fit(
            model,
            twin_loss(recipe, meter),
            twin_batches(recipe, processor, source, rank=rank(), ranks=ranks()),
            folder=folder / recipe.kind,
            steps=steps,
            lr=recipe.lr,
            warmup_steps=warmup(recipe, steps),
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            precision=recipe.precision,
            seed=recipe.seed,
            checkpoint_minutes=recipe.checkpoint_minutes,
            resume=resume,
            evaluation=evaluation,
            log=log,
            micro_batches=recipe.micro_batches,
            adam_beta2=recipe.adam_beta2,
            adam_epsilon=recipe.adam_epsilon,
            report_to=list(recipe.report_to) or "none",
        )
    finally:
        if is_first_process():  # also of a run that was stopped
            draw_curves(folder / "log.jsonl", folder / "curves.png")
    return model, processor, evaluation.history


def check_served(recipe: TuneRecipe) -> None:
    """ConfigError for what vLLM could not serve, unless the recipe says that nobody wants to."""
    if recipe.servable:
        check_servable(model_type_of(recipe.base))
        if recipe.kind != "full" and recipe.scope != ("language",):
            check_tower_servable(located(recipe.base))


def check_device(recipe: TuneRecipe, *, cuda: bool) -> None:
    """ConfigError where 4-bit weights are wanted and there is nothing to compute with them."""
    if recipe.kind == "qlora" and not cuda:
        raise ConfigError(
            "kind: qlora needs a CUDA device for its 4-bit weights; on this machine use kind: lora"
        )
    if recipe.kind == "qlora" and find_spec("bitsandbytes") is None:
        raise ConfigError("kind: qlora needs bitsandbytes: pip install bitsandbytes")


def check_reports(recipe: TuneRecipe) -> None:
    """ConfigError where a place that is to be reported to is not installed."""
    for name in recipe.report_to:
        if find_spec(name) is None:
            raise ConfigError(f"report_to: {name} is not installed: pip install {name}, or leave it out")


def loading_of(recipe: TuneRecipe) -> dict[str, Any]:
    """How the base's weights are loaded: in the recipe's type, in 4 bits for QLoRA (arXiv 2305.14314)."""
    dtype = torch.bfloat16 if recipe.weights == "bf16" else torch.float32
    if recipe.kind != "qlora":
        return {"dtype": dtype}
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": dtype, "quantization_config": four_bit, "device_map": {"": torch.cuda.current_device()}}


def trainable(base: Any, recipe: TuneRecipe) -> Any:
    """The base with an adapter on the modules in scope, or with all else frozen for `kind: full`."""
    if not torch.cuda.is_available():
        # Short rows: plain matrix products are faster on a CPU than its flash attention.
        base.set_attn_implementation("eager")
    if recipe.kind == "full":
        family = family_of(base.config.model_type)
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(family.scope_of(name) in recipe.scope)
        return checkpointed(base) if recipe.gradient_checkpointing else base
    adapted = get_peft_model(base, lora_config(recipe, base.config.model_type))
    return checkpointed(adapted) if recipe.gradient_checkpointing else adapted


def checkpointed(model: Any) -> Any:
    """The model with gradient checkpointing.

    The Trainer's own switch also asks for gradients at every embedding, the vision tower's patches included:
    a frozen tower would be run again and differentiated for nothing. Checkpoints that are not reentrant do
    without.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()
    return model


def lora_config(recipe: TuneRecipe, model_type: str) -> LoraConfig:
    """Adapters on the modules in scope: by default the language model's linear layers only, while vision
    tower and projector stay as they are."""
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=family_of(model_type).lora_targets(recipe.scope, recipe.targets or "linear"),
        task_type="CAUSAL_LM",
    )


def source_of(recipe: TuneRecipe, config: Any, processor: Any) -> tuple[Source, int]:
    """Where examples come from, and how many steps that makes; `config` is the base model's.

    Raises DataError for examples of one's own that the run could not be carried through with.
    """
    if recipe.data == TINYWORLD:
        assert recipe.steps is not None  # the recipe's own check
        return tinyworld_source(recipe), recipe.steps
    found = read_examples(recipe.data, recipe.reading)
    pools = pools_of(recipe, found)
    drawn = sum(map(len, pools.values()))
    if is_first_process():
        print(told_of(recipe, found, pools), file=sys.stderr, flush=True)
    steps = recipe.steps or max(1, round((recipe.epochs or 1) * drawn / recipe.batch))
    check_lengths(recipe, config, processor, found, pools, steps, quiet=not is_first_process())
    return data_source(recipe, found, pools), steps


def told_of(recipe: TuneRecipe, found: DataSet, pools: Pools) -> str:
    """How many examples are learnt from, how many of these without a label, and how many are left out."""
    drawn = {number for numbers in pools.values() for number in numbers}
    unlabelled = sum(
        number in drawn and not sample.item.labelled for number, sample in enumerate(found.samples())
    )
    said = f"{recipe.data}: {len(drawn)} examples"
    if unlabelled:
        said += f", {unlabelled} of them without a label (for the consistency loss only)"
    if left := len(found) - len(drawn):
        said += f"; {left} are left out: of unknown family, of no quota, or without label and twin"
    return said


def watched_of(recipe: TuneRecipe, config: Any, processor: Any) -> list[Watched]:
    """What is looked at while training: TinyWorld's validation split, or the recipe's own, if it has one.

    Raises DataError for examples of one's own that a model of this `config` could not be asked.
    """
    if recipe.data == TINYWORLD:
        return tinyworld_watched(recipe.evaluate_items)
    if recipe.validation is None:
        return []
    found = read_examples(recipe.validation, recipe.reading)
    check_validation(recipe, config, processor, found, max(recipe.evaluate_items, BASELINE_ITEMS))
    return own_watched(found, recipe.evaluate_items, recipe.perturbations)


def warmup(recipe: TuneRecipe, steps: int) -> int:
    """Warm-up in steps."""
    return (
        recipe.warmup_steps if recipe.warmup_steps is not None else round((recipe.warmup_ratio or 0) * steps)
    )


def twin_loss(recipe: TuneRecipe, meter: Meter | None = None) -> Callable[[nn.Module, Batch], Tensor]:
    """The whole method's loss of one batch, by the recipe's weights and attack."""
    weights = weights_of(recipe)
    measured = Meter() if meter is None else meter

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        family = family_of(bare(model).config.model_type)
        return step_loss(family, weights, attack_of(recipe), measured)(model, batch)

    return loss


def weights_of(recipe: TuneRecipe) -> Weights:
    """What the recipe lets the terms of the loss weigh."""
    return Weights(
        task=recipe.task_weight,
        adversarial=recipe.attack.weight if recipe.attack else 0.0,
        consistency=recipe.consistency_weight,
        kind=recipe.consistency,
        temperature=recipe.temperature,
        stop_gradient=recipe.stop_gradient,
    )


def attack_of(recipe: TuneRecipe) -> Attack | None:
    """The recipe's attack, if it has one."""
    section = recipe.attack
    if section is None:
        return None
    return Attack(
        kind=section.kind,
        step=section.step or "raw",
        epsilon=section.epsilon,
        relative=section.relative,
        alpha=section.alpha or 0.0,
        steps=section.steps,
    )
