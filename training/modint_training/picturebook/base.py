"""`modint-guard train picturebook-base`: tower, alignment, language model in the loop, and what ships."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from modint_guard.errors import ConfigError
from modint_guard.models.gguf import Gguf
from modint_guard.models.picturebook import PARTS, WEIGHTS, write_model
from modint_guard.models.weights import Floats, write_weights
from modint_guard.models.wheel import sha256_of
from modint_training.loop.trainer import Evaluation, StepLog, Trained, fit, seed_everything
from modint_training.method.ranks import started_processes
from modint_training.models.card import Run
from modint_training.models.export import describe, replace_folder
from modint_training.picturebook.card import picturebook_card
from modint_training.picturebook.language import build_language, build_processor, fetched_language
from modint_training.picturebook.pages import PageBatch, collate_pages, pages_of
from modint_training.picturebook.recipe import PicturebookRecipe
from modint_training.picturebook.shown import (
    NAMES,
    Drawings,
    drawn_batches,
    held_out_drawings,
    trained_drawings,
)
from modint_training.picturebook.speak import Speaker, lora_weights, speak_loss
from modint_training.picturebook.suite import Mixture, training_page
from modint_training.picturebook.tower import (
    Reader,
    align_loss,
    inside,
    name_tokens,
    start_well,
    tower_loss,
    vision_config,
)

STAGES = ("tower", "align", "speak")  # folders of checkpoints
MAX_WORKERS = 8
B = TypeVar("B")  # a stage's batch


class Recorded(Generic[B]):
    """A loss that remembers its last value, for the log."""

    def __init__(self, loss: Callable[[Any, B], Tensor]) -> None:
        self.loss = loss
        self.last = float("nan")

    def __call__(self, net: nn.Module, batch: B) -> Tensor:
        value = self.loss(net, batch)
        self.last = float(value.detach())
        return value

    def figures(self) -> dict[str, float]:
        """The last step's loss, in nats."""
        return {"loss": self.last}


def train_parts(recipe: PicturebookRecipe, folder: Path, *, resume: str) -> tuple[Speaker, Gguf, Any]:
    """All three stages, with checkpoints and `STAGE/log.jsonl` under `folder`: what was trained, the language
    model's file, and the processor. Raises ConfigError in several processes, or if SmolLM2 cannot be had."""
    if started_processes() > 1:
        raise ConfigError(
            f"kind: picturebook trains in one process, and {started_processes()} were started: leave "
            "`accelerate launch` out"
        )
    seed_everything(recipe.seed)
    gguf = fetched_language()
    processor = build_processor(gguf, folder / "tokenizer")
    language = build_language(gguf)
    reader = Reader(name_tokens(processor.tokenizer, NAMES, language.embed_tokens.weight.detach()))
    _teach_tower(reader, recipe, folder, resume)
    _align(reader, recipe, folder, resume)
    speaker = Speaker(
        reader,
        language,
        first=recipe.first_layer,
        rank=recipe.rank,
        image_token=processor.tokenizer.convert_tokens_to_ids(processor.image_token),
    )
    _teach_to_speak(speaker, recipe, processor, folder, resume)
    return speaker, gguf, processor


def _teach_tower(reader: Reader, recipe: PicturebookRecipe, folder: Path, resume: str) -> None:
    _announce("teaching the vision tower what the drawings show")
    start_well(reader, drawn_batches("start", recipe.seed, 600)(0)[0].pixels)
    _fit(
        *(reader, tower_loss, drawn_batches("tower", recipe.seed, recipe.tower_batch), recipe),
        folder=folder / "tower",
        steps=recipe.tower_steps,
        lr=recipe.tower_lr,
        weight_decay=recipe.weight_decay,
        resume=resume,
        evaluation=Evaluation(_named_right, max(1, recipe.tower_steps // 8)),
    )


def _align(reader: Reader, recipe: PicturebookRecipe, folder: Path, resume: str) -> None:
    _announce("drawing the projector onto the words for things")
    reader.tower.requires_grad_(False)
    reader.head.requires_grad_(False)
    _fit(
        *(reader, align_loss, drawn_batches("align", recipe.seed, recipe.align_batch), recipe),
        folder=folder / "align",
        steps=recipe.align_steps,
        lr=recipe.align_lr,
        weight_decay=0.0,
        resume=resume,
    )


def _teach_to_speak(
    speaker: Speaker, recipe: PicturebookRecipe, processor: Any, folder: Path, resume: str
) -> None:
    _announce("teaching the language model to answer about pictures and texts")
    _fit(
        *(speaker, speak_loss, page_batches(recipe, processor), recipe),
        folder=folder / "speak",
        steps=recipe.steps,
        lr=recipe.lr,
        weight_decay=0.0,
        resume=resume,
    )


def page_batches(recipe: PicturebookRecipe, processor: Any) -> Callable[[int], list[PageBatch]]:
    """Batch k of the last stage: `pages` things, `questions` about each, as pages of questions that share a
    picture."""
    mixture = Mixture(**recipe.mixture.model_dump())

    def batch(step: int) -> list[PageBatch]:
        indices = range(step * recipe.pages, (step + 1) * recipe.pages)
        items = [
            training_page(index, recipe.questions, seed=recipe.seed, mixture=mixture) for index in indices
        ]
        pages = [page for asked in items for page in pages_of(asked, processor)]
        return [collate_pages(pages, processor)]

    return batch


def _fit(
    net: nn.Module,
    loss: Callable[[Any, B], Tensor],
    batches: Callable[[int], list[B]],
    recipe: PicturebookRecipe,
    *,
    folder: Path,
    steps: int,
    **options: Any,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    recorded = Recorded(loss)
    fit(
        net,
        recorded,
        batches,
        folder=folder,
        steps=steps,
        warmup_steps=min(recipe.warmup_steps, steps // 4),
        max_grad_norm=recipe.max_grad_norm,
        precision=recipe.precision,
        seed=recipe.seed,
        checkpoint_minutes=recipe.checkpoint_minutes,
        log=StepLog(folder / "log.jsonl", recorded.figures),
        # Drawing takes longer than a GPU's step: there every second core draws.
        workers=min(MAX_WORKERS, max(1, (os.cpu_count() or 1) // 2)),
        **options,
    )


@torch.no_grad()
def _named_right(net: Reader, step: int) -> dict[str, float]:
    """The share of plain drawings whose thing the tower's head names, in trained styles and the held-out."""
    return {
        name: _accuracy(net, drawings)
        for name, drawings in (("trained", trained_drawings()), ("held_out_style", held_out_drawings()))
    }


def _accuracy(net: Reader, drawings: Drawings) -> float:
    device = next(net.parameters()).device
    batch = drawings.plain()
    _, logits = net(batch.pixels.to(device))
    return float((logits.argmax(-1).cpu() == batch.things).float().mean())


def train_base(recipe: PicturebookRecipe, folder: Path, *, resume: str) -> Trained:
    """Train, write what ships to `folder`/parts, and put the model together in `folder`/model; returns that
    model in float32."""
    speaker, gguf, processor = train_parts(recipe, folder, resume=resume)
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    write_parts(speaker, processor, folder / "parts")
    write_model(gguf, folder / "parts", model)
    net = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    return Trained(net.eval(), processor, [])


def export_base(folder: Path, target: Path, run: Run) -> None:
    """Write record and card beside what ships, and the whole model with them to `target`, as a fetch makes
    it from what ships."""
    described = {**run, "weights_sha256": sha256_of(folder / "model" / WEIGHTS)}
    for place in (folder / "parts", folder / "model"):
        describe(place, described, picturebook_card(described))
    replace_folder(target, lambda fresh: shutil.copytree(folder / "model", fresh, dirs_exist_ok=True))


def write_parts(speaker: Speaker, processor: Any, parts: Path) -> None:
    """What ships, but for its record and card: weights, configuration, picture processing."""
    parts.mkdir(parents=True, exist_ok=True)
    write_weights(parts / PARTS, shipped_weights(speaker).items())
    processor.save_pretrained(parts)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (parts / file).unlink()  # they come with the language model
    tokens = processor.tokenizer
    generation = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id}
    for name, content in (("config", llava_config(processor)), ("generation_config", generation)):
        (parts / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def shipped_weights(speaker: Speaker) -> dict[str, Floats]:
    """Tower and projector under the names that vLLM wants, the LoRA's factors by layer."""
    reader = speaker.reader
    weights = {
        f"vision_tower.vision_model.{name}": value
        for name, value in inside(reader.tower).state_dict().items()
    }
    for name in ("linear_1", "linear_2"):
        layer = getattr(reader, name)
        weights[f"multi_modal_projector.{name}.weight"] = layer.weight
        weights[f"multi_modal_projector.{name}.bias"] = layer.bias
    weights |= lora_weights(speaker)
    return {name: value.detach().cpu().float().numpy() for name, value in weights.items()}


def llava_config(processor: Any) -> dict[str, Any]:
    """The model's `config.json` but for the language model, which comes with the wheel."""
    config = LlavaConfig(
        vision_config=vision_config(),
        image_token_index=processor.tokenizer.convert_tokens_to_ids(processor.image_token),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    ).to_diff_dict()
    config.pop("text_config", None)
    return {**config, "architectures": ["LlavaForConditionalGeneration"], "dtype": "bfloat16"}


def _announce(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
