"""What a training step costs at full size: a LLaVA-1.5-7B with random weights, plain SFT beside the whole
method, on one GPU.

    PYTHONPATH=training python -m bench.step_cost.training_gpu --output bench/results/training_gpu.json

Nothing is downloaded: the weights are drawn on the device, the examples are random words and pictures of the
model's own size with the bundled tokenizer, and the recipe is `llava-1.5-7b` (LoRA of rank 128 on q, k, v, o;
bf16; gradient checkpointing). Everything between an example and its gradient is this project's training code.
`--tiny` runs the same on a model of 360,000 parameters, on a CPU too.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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

from bench.step_cost.stepping import PLAIN_SFT, default_device, named, optimizer_of, recipe_of, step
from modint_guard.data.item import Family, Item
from modint_guard.data.perturb import clean_view, seeded
from modint_guard.evaluation.results import table, write_results
from modint_guard.models import located
from modint_training.data.batches import Group, planned
from modint_training.data.sampler import Quotas, Slot
from modint_training.method.batch import Batch
from modint_training.method.step import Meter, log_line, twin_loss
from modint_training.models.loading import trainable
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld.language import CHAT_TEMPLATE

RECIPE = "llava-1.5-7b"
METHODS: dict[str, tuple[str, ...]] = {  # and what each changes in the recipe
    "sft": PLAIN_SFT,
    "cons": ("attack=null",),
    "full": ("attack.steps=1",),
    "full-t2": ("attack.steps=2",),
}
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """A LLaVA's shape, and how many words its examples have."""

    vision: dict[str, int]
    text: dict[str, int]
    question: tuple[int, int]  # words, from and to
    context: tuple[int, int]
    answer: int  # of a vqa example; the others answer in one


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
class Measured:
    """A method's figures, one a timed step; `failed` says why there are no more."""

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
    asked = parser().parse_args(arguments)
    began = time.monotonic()
    device = default_device()
    size = TINY if asked.tiny else FULL
    if device.type == "cpu" and not asked.tiny:
        sys.exit("a model of this size needs a CUDA device; --tiny runs on a CPU")
    processor = processor_of(size)
    recipes = {name: recipe_of(RECIPE, METHODS[name]) for name in asked.methods}
    model = model_of(size, processor, recipes[asked.methods[0]], device)
    say(f"model on {named(device)} after {time.monotonic() - began:.0f} s")
    found = measure(model, processor, size, recipes, asked, device)
    rows = [row(name, found[name], found[asked.methods[0]], model, device) for name in asked.methods]
    print(table(rows))
    write_results(
        asked.output,
        command=f"python -m bench training-gpu {' '.join(sys.argv[1:] if arguments is None else arguments)}",
        seeds=[0],
        rows=rows,
        title="Training at full size: a step of plain SFT and of the whole method",
        notes=NOTES,
        revision=asked.commit,
    )
    say(f"done after {time.monotonic() - began:.0f} s")


NOTES = """A LLaVA-1.5-7B with random weights, LoRA by recipe `llava-1.5-7b` (rank 128 on q, k, v, o, bf16,
gradient checkpointing), 8 examples a step as 2 : 2 : 4. `sft` is the clean rows alone; `cons` adds the twins
and their consistency, `full` the attack with T = 1, `full-t2` with T = 2. Methods take turns, a step each,
on the same examples. `times_first` is the median, over the turns, of a step's time as a multiple of the first
method's. `tokens` are those of the clean rows and twins of a step, without padding; rows that an attack runs
again are not counted a second time. `peak_gib` is the most that torch had allocated during a timed step."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m bench.step_cost.training_gpu", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--output", type=Path, required=True, help="the JSON file; its table lies beside it")
    made.add_argument("--commit", help="what to record where the files lie without their repository")
    made.add_argument("--tiny", action="store_true", help="a model of 360,000 parameters")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=["sft", "full"])
    made.add_argument("--warm-up", type=int, default=3, help="turns that are not timed")
    made.add_argument("--rounds", type=int, default=8, help="turns that are")
    made.add_argument("--limit-s", type=float, default=75, help="no turn begins later, once 2 are timed")
    return made


def say(text: str) -> None:
    """A line of progress."""
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
    """Random weights in bf16, drawn where they will be used, under the recipe's adapter."""
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
    """Stop where a tensor was left elsewhere, or a frozen weight is not bf16: both would spoil figures."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    astray = [name for name, tensor in tensors.items() if tensor.device.type != device.type]
    wide = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and parameter.dtype != torch.bfloat16
    ]
    if astray or wide:
        sys.exit(f"not on {device}: {astray[:5]}; not in bf16: {wide[:5]}")


def groups_of(size: Size, processor: LlavaProcessor, step: int) -> list[Group]:
    """A step's examples in the recipe's quotas, each image-heavy and text-heavy one with a twin."""
    words = vocabulary(processor)
    recipe = recipe_of(RECIPE, PLAIN_SFT)
    return [group(slot, size, words) for slot in Quotas(recipe.quotas, recipe.batch).slots(step)]


def vocabulary(processor: LlavaProcessor) -> list[str]:
    """Words that are one token each."""
    tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    return sorted(
        token[1:] for token in tokens if token[0] == "Ġ" and token[1:].isalpha() and token.isalpha()
    )


def group(slot: Slot, size: Size, words: Sequence[str]) -> Group:
    """A random example and its twin: a text before an image-heavy one, a picture beside a text-heavy one."""
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
    return Group(slot.family, (clean_view(item), *twins(item, text(*size.context))), rng.getrandbits(63))


def twins(item: Item, context: str) -> tuple[Item, ...]:
    """What `views.twin` would make of it, at a length of our own."""
    made: dict[Family, tuple[Item, ...]] = {
        "image-heavy": (item.replace(context=context),),
        "text-heavy": (item,),
        "vqa": (),
    }
    return made[item.family]


def picture(side: int, seed: int) -> Image.Image:
    """Noise of the model's own size."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def batch_of(groups: Sequence[Group], processor: LlavaProcessor, recipe: TuneRecipe) -> Batch:
    """The tensors of a step: of the clean rows alone where the recipe knows no twins."""
    if not recipe.perturbations:
        groups = [Group(made.family, made.rows[:1], made.seed) for made in groups]
    return planned(groups, processor, recipe)


def measure(
    model: nn.Module,
    processor: LlavaProcessor,
    size: Size,
    recipes: dict[str, TuneRecipe],
    asked: argparse.Namespace,
    device: torch.device,
) -> dict[str, Measured]:
    """Steps of each method in turn, on the same examples."""
    began = time.monotonic()
    found = {name: Measured() for name in recipes}
    optimizer = optimizer_of(model, recipes[asked.methods[0]])
    for turn in range(asked.warm_up + asked.rounds):
        timed = turn - asked.warm_up
        if timed >= 2 and time.monotonic() - began > asked.limit_s:
            say(f"stopped at the limit after {timed} timed turns")
            break
        groups = groups_of(size, processor, turn)
        for name, recipe in recipes.items():
            if found[name].failed:
                continue
            batch = batch_of(groups, processor, recipe)
            try:
                meter = Meter()
                seconds, peak = step(model, optimizer, twin_loss(recipe, meter), batch, recipe, device)
            except torch.OutOfMemoryError:
                found[name].failed = "out of memory"
                optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                continue
            log = {part: round(value, 5) for part, value in log_line(meter.take()).items()}
            if timed >= 0:
                note(found[name], batch, seconds, peak, log)
            say(f"turn {turn}: {name} {seconds:.3f} s, {peak / GIB:.1f} GiB, {log}")
    return found


def note(found: Measured, batch: Batch, seconds: float, peak: int, log: dict[str, float]) -> None:
    """Keep a timed step's figures."""
    found.seconds.append(seconds)
    found.tokens.append(int(batch["attention_mask"].sum()))
    found.positions.append(batch["input_ids"].numel())
    found.rows.append(len(batch["input_ids"]))
    found.attacked.append(int(batch["attackable"].any(-1).sum()))
    found.peak_bytes = max(found.peak_bytes, peak)
    found.log = log


def row(
    name: str, found: Measured, first: Measured, model: nn.Module, device: torch.device
) -> dict[str, Any]:
    """One line of the table; figures are None for a method that did not come to a timed step."""
    some = bool(found.seconds)
    ratios = [one / other for one, other in zip(found.seconds, first.seconds, strict=False)]
    counts = [parameter.numel() for parameter in model.parameters()]
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return {
        "method": name,
        "device": named(device),
        "torch": torch.__version__,
        "parameters": sum(counts),
        "trained": sum(trained),
        "examples": recipe_of(RECIPE, METHODS[name]).batch,
        "rows": max(found.rows, default=None),
        "attacked_rows": max(found.attacked, default=None),
        "tokens": round(median(found.tokens)) if some else None,
        "padded_tokens": round(median(found.positions)) if some else None,
        "steps": len(found.seconds),
        "step_s": median(found.seconds) if some else None,
        "step_s_least": min(found.seconds, default=None),
        "step_s_most": max(found.seconds, default=None),
        "times_first": median(ratios) if ratios else None,
        "tokens_per_s": round(sum(found.tokens) / sum(found.seconds)) if some else None,
        "peak_gib": found.peak_bytes / GIB if found.peak_bytes else None,
        "loss": found.log.get("loss"),
        "delta_rms": found.log.get("delta_rms"),
        "failed": found.failed,
    }


if __name__ == "__main__":
    main()
