"""Tiny checkpoints of each model family, randomly initialised, with TinyWorld's own tokenizer."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from modint_training.tinyworld.language import CHAT_TEMPLATE
from tests.training.small import small_model

WIDTH = 32
FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "instructblip")
IMAGE = "<image>"
VIDEO = "<|video_pad|>"  # vLLM looks for it in the vocabulary


def small_family(name: str, processor: Any) -> tuple[Any, Any]:
    """A model of the family and its processor, the same weights every time."""
    torch.manual_seed(0)
    if name == "llava":
        return lively(small_model(processor)), processor
    tokenizer = processor.tokenizer
    return _instructblip(tokenizer) if name == "instructblip" else _qwen(name, tokenizer)


def lively(model: Any) -> Any:
    """Random weights are nearly flat: larger ones, so that what goes in shows in what comes out."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                parameter.mul_(4.0)
    return model


def _text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _qwen(name: str, shared: Any) -> tuple[Any, Any]:
    modern = name == "qwen2_5_vl"
    tokenizer = copy.deepcopy(shared)
    tokenizer.add_tokens([VIDEO], special_tokens=True)
    config_class, model_class, processor_class = (
        (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor)
        if modern
        else (Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor)
    )
    vision: dict[str, Any] = {
        "depth": 1,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    vision |= (
        {
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
            "window_size": 56,
        }
        if modern
        else {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 1}
    )
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config = config_class(
        text_config={**_text(tokenizer), "rope_parameters": rope},
        vision_config=vision,
        image_token_id=image_id,
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
        vision_start_token_id=tokenizer.bos_token_id,
    )
    sizes = {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}
    made = processor_class(
        image_processor=Qwen2VLImageProcessor(size=sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=sizes),
        chat_template=CHAT_TEMPLATE,
    )
    return lively(model_class(config)), made


def _instructblip(shared: Any) -> tuple[Any, Any]:
    # Its processor wants a tokenizer that knows of no image token, and adds its own.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=shared.backend_tokenizer,
        pad_token=shared.pad_token,
        bos_token=shared.bos_token,
        eos_token=shared.eos_token,
    )
    narrow = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**narrow, image_size=28, patch_size=14).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            **narrow, vocab_size=len(tokenizer), encoder_hidden_size=WIDTH, cross_attention_frequency=1
        ).to_dict(),
        text_config=LlamaConfig(**_text(tokenizer)).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    model = InstructBlipForConditionalGeneration(config).eval()  # its Q-Former drops out in training
    torch.nn.init.normal_(model.query_tokens)  # a fresh one has queries of nought
    made = InstructBlipProcessor(
        image_processor=BlipImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        qformer_tokenizer=tokenizer,
        num_query_tokens=4,
    )
    return lively(model), made


def save_small_family(name: str, processor: Any, folder: Path) -> Path:
    """A model folder as `base:` names it."""
    model, own = small_family(name, processor)
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
    return folder
