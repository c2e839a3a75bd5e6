"""The cost of a training step at full size: a LLaVA-1.5-7B with random weights, plain SFT against the whole
method, on one GPU.

    PYTHONPATH=training python -m bench.step_cost.training_gpu --output bench/results/training_gpu.json

Nothing is downloaded: the weights are drawn on the device, the examples are random words and random pictures
of the model's own size, the tokenizer is the bundled one, and the recipe is `llava-1.5-7b` (LoRA of rank 128
on q, k, v, o; bf16; gradient checkpointing). Everything between an example and its gradient is this project's
training code.
`--tiny` runs the same on a model of 360,000 parameters, on a CPU too.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from bench.step_cost.stepping import PLAIN_SFT, device_name, optimizer_of, step, tune_recipe
from modint_guard.data.item import Family, Item
from modint_guard.data.perturb import clean_view, seeded
from modint_guard.evaluation.results import table, write_results
from modint_guard.models import located
from modint_training.data.batches import Example, batch_of
from modint_training.data.sampler import Quotas, Slot
from modint_training.method.batch import Batch
from modint_training.method.step import StepMeter, log_line, twin_loss
from modint_training.models.loading import fastest_device, trainable
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld.language import CHAT_TEMPLATE

RECIPE = "llava-1.5-7b"
METHODS: dict[str, tuple[str, ...]] = {  # with the recipe overrides of each
    "sft": PLAIN_SFT,
    "cons": ("attack=null",),
    "full": ("attack.rows=twins", "attack.steps=1"),
    "full-t2": ("attack.rows=twins", "attack.steps=2"),
}
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """A LLaVA's shape, and the number of words in its examples."""

    vision: dict[str, int]
    text: dict[str, int]
    question: tuple[int, int]  # words, at least and at most
    context: tuple[int, int]
    answer: int  # words of a vqa example's answer; the others have one


# https://huggingface.co/llava-hf/llava-1.5-7b-hf: CLIP ViT-L/14 at 336 pixels, Llama 2 7B.
FULL = Size(
    vision={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    text={
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    question=(32, 64),
    context=(32, 64),
    answer=8,
)
TINY = Size(
    vision={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 32,
    },
    text={
        "vocab_size": 800,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    question=(4, 8),
    context=(4, 8),
    answer=2,
)


@dataclass
class StepFigures:
    """A method's figures, one for each timed step; `failed` says why there are no more."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    attacked: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    log: dict[str, float] = field(default_factory=dict)
    failed: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the files."""
    options = parser().parse_args(arguments)
    began = time.monotonic()
    device = fastest_device()
    size = TINY if options.tiny else FULL
    if device.type == "cpu" and not options.tiny:
        sys.exit("a model of this size needs a CUDA device; --tiny runs on a CPU")
    processor = processor_of(size)
    recipes = {name: tune_recipe(RECIPE, METHODS[name]) for name in options.methods}
    model = model_of(size, processor, recipes[options.methods[0]], device)
    say(f"model on {device_name(device)} after {time.monotonic() - began:.0f} s")
    figures = measure(model, processor, size, recipes, options, device)
    first = figures[options.methods[0]]
    rows = [row(name, figures[name], first, model, device) for name in options.methods]
    print(table(rows))
    write_results(
        options.output,
        command=f"python -m bench training-gpu {' '.join(sys.argv[1:] if arguments is None else arguments)}",
        seeds=[0],
        rows=rows,
        title="Training at full size: a step of plain SFT and of the whole method",
        notes=NOTES,
        revision=options.commit,
    )
    say(f"done after {time.monotonic() - began:.0f} s")


NOTES = """A LLaVA-1.5-7B with random weights, LoRA by recipe `llava-1.5-7b` (rank 128 on q, k, v, o, bf16,
gradient checkpointing), 8 examples a step as 2 : 2 : 4. `sft` is the clean rows alone; `cons` adds the twins
and their consistency, `full` the attack on the twins with T = 1, `full-t2` with T = 2. Methods take turns, a
step each, on the same examples. `times_first` is the median, over the turns, of a step's time as a multiple
of the first method's. `tokens` are those of the clean rows and twins of a step, without padding; rows that an
attack runs again are not counted a second time. `peak_gib` is the most that torch had allocated during a
timed step."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog="python -m bench.step_cost.training_gpu", description=__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--output", type=Path, required=True, help="the JSON file; its table goes beside it")
    options.add_argument("--commit", help="what to record as the commit, outside of the repository")
    options.add_argument("--tiny", action="store_true", help="a model of 360,000 parameters")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=["sft", "full"])
    options.add_argument("--warm-up", type=int, default=3, help="turns that are not timed")
    options.add_argument("--rounds", type=int, default=8, help="turns that are timed")
    options.add_argument(
        "--limit-s", type=float, default=75, help="start no turn after this time, once 2 are timed"
    )
    return options


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def processor_of(size: Size) -> LlavaProcessor:
    """LLaVA-1.5's picture size and strategy with the bundled tokenizer."""
    side = {"height": size.vision["image_size"], "width": size.vision["image_size"]}
    tokenizer = AutoTokenizer.from_pretrained(located("tinyworld-base"))
    tokenizer.model_max_length = size.text["max_position_embeddings"]
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side["height"]}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=size.vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def model_of(size: Size, processor: LlavaProcessor, recipe: TuneRecipe, device: torch.device) -> nn.Module:
    """Random weights in bf16, drawn on the device, with the recipe's adapter."""
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size.vision),
        text_config=LlamaConfig(
            **size.text,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(processor.image_token),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            base = LlavaForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(before)
        model: nn.Module = trainable(base, recipe)
    model.to(device)
    check_placed(model, device)
    return model.train()


def check_placed(model: nn.Module, device: torch.device) -> None:
    """Exit if a tensor is on another device or a frozen weight is not bf16: both would falsify the
    figures."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    astray = [name for name, tensor in tensors.items() if tensor.device.type != device.type]
    wide = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and parameter.dtype != torch.bfloat16
    ]
    if astray or wide:
        sys.exit(f"not on {device}: {astray[:5]}; not in bf16: {wide[:5]}")


def examples_of(size: Size, processor: LlavaProcessor, step: int) -> list[Example]:
    """A step's examples in the recipe's quotas; each image-heavy and text-heavy one has a twin."""
    words = vocabulary(processor)
    recipe = tune_recipe(RECIPE, PLAIN_SFT)
    return [example(slot, size, words) for slot in Quotas(recipe.quotas, recipe.batch).slots(step)]


def vocabulary(processor: LlavaProcessor) -> list[str]:
    """The words of the vocabulary that are one token."""
    tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    return sorted(
        token[1:] for token in tokens if token[0] == "Ġ" and token[1:].isalpha() and token.isalpha()
    )


def example(slot: Slot, size: Size, words: Sequence[str]) -> Example:
    """A random example and its twin: image-heavy with a text before it, text-heavy with a picture."""
    rng = seeded("bench", slot.index)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(least, most)))

    answer = text(size.answer, size.answer) if slot.family == "vqa" else text(1, 1)
    item = Item(
        id=f"bench-{slot.index}",
        family=slot.family,
        task="random",
        form="free",
        question=text(*size.question),
        answer=answer,
        image=picture(size.vision["image_size"], rng.getrandbits(32)),
    )
    return Example(slot.family, (clean_view(item), *twins(item, text(*size.context))), rng.getrandbits(63))


def twins(item: Item, context: str) -> tuple[Item, ...]:
    """What `data.twins.twin` would make of the item, but with a context of the wanted length."""
    by_family: dict[Family, tuple[Item, ...]] = {
        "image-heavy": (item.replace(context=context),),
        "text-heavy": (item,),
        "vqa": (),
    }
    return by_family[item.family]


def picture(side: int, seed: int) -> Image.Image:
    """Noise, `side` pixels wide and high."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def method_batch(examples: Sequence[Example], processor: LlavaProcessor, recipe: TuneRecipe) -> Batch:
    """The batch of a step; of the clean rows only if the recipe has no perturbations."""
    if not recipe.perturbations:
        examples = [replace(example, rows=example.rows[:1]) for example in examples]
    return batch_of(examples, processor, recipe)


def measure(
    model: nn.Module,
    processor: LlavaProcessor,
    size: Size,
    recipes: dict[str, TuneRecipe],
    options: argparse.Namespace,
    device: torch.device,
) -> dict[str, StepFigures]:
    """Steps of each method in turn, on the same examples."""
    began = time.monotonic()
    figures = {name: StepFigures() for name in recipes}
    optimizer = optimizer_of(model, recipes[options.methods[0]])
    for turn in range(options.warm_up + options.rounds):
        timed = turn - options.warm_up
        if timed >= 2 and time.monotonic() - began > options.limit_s:
            say(f"stopped at the limit after {timed} timed turns")
            break
        examples = examples_of(size, processor, turn)
        for name, recipe in recipes.items():
            if figures[name].failed:
                continue
            batch = method_batch(examples, processor, recipe)
            try:
                meter = StepMeter()
                seconds, peak = step(model, optimizer, twin_loss(recipe, meter), batch, recipe, device)
            except torch.OutOfMemoryError:
                figures[name].failed = "out of memory"
                optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                continue
            log = {part: round(value, 5) for part, value in log_line(meter.take()).items()}
            if timed >= 0:
                note(figures[name], batch, seconds, peak, log)
            say(f"turn {turn}: {name} {seconds:.3f} s, {peak / GIB:.1f} GiB, {log}")
    return figures


def note(figures: StepFigures, batch: Batch, seconds: float, peak: int, log: dict[str, float]) -> None:
    """Keep a timed step's figures."""
    figures.seconds.append(seconds)
    figures.tokens.append(int(batch.inputs["attention_mask"].sum()))
    figures.positions.append(batch.labels.numel())
    figures.rows.append(len(batch.labels))
    figures.attacked.append(int(batch.attackable.any(-1).sum()))
    figures.peak_bytes = max(figures.peak_bytes, peak)
    figures.log = log


def row(
    name: str, figures: StepFigures, first: StepFigures, model: nn.Module, device: torch.device
) -> dict[str, Any]:
    """One row of the table; figures are None for a method without a timed step."""
    some = bool(figures.seconds)
    ratios = [one / other for one, other in zip(figures.seconds, first.seconds, strict=False)]
    counts = [parameter.numel() for parameter in model.parameters()]
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return {
        "method": name,
        "device": device_name(device),
        "torch": torch.__version__,
        "parameters": sum(counts),
        "trained": sum(trained),
        "examples": tune_recipe(RECIPE, METHODS[name]).batch,
        "rows": max(figures.rows, default=None),
        "attacked_rows": max(figures.attacked, default=None),
        "tokens": round(median(figures.tokens)) if some else None,
        "padded_tokens": round(median(figures.positions)) if some else None,
        "steps": len(figures.seconds),
        "step_s": median(figures.seconds) if some else None,
        "step_s_least": min(figures.seconds, default=None),
        "step_s_most": max(figures.seconds, default=None),
        "times_first": median(ratios) if ratios else None,
        "tokens_per_s": round(sum(figures.tokens) / sum(figures.seconds)) if some else None,
        "peak_gib": figures.peak_bytes / GIB if figures.peak_bytes else None,
        "loss": figures.log.get("loss"),
        "delta_rms": figures.log.get("delta_rms"),
        "failed": figures.failed,
    }


if __name__ == "__main__":
    main()
