"""The model families that can be trained: one record each of what differs between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modint_guard.errors import ConfigError
from modint_training.recipe import Scope, Targets

Pictures = Sequence[Image.Image | None]  # one for each row, None if the row has no picture

LINEAR = "(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
ATTENTION = "(q_proj|k_proj|v_proj|o_proj)"


class Message(TypedDict):
    """A message of a chat, its content as a list of parts (`{"type": "image"}`, `{"type": "text", ...}`)."""

    role: str
    content: list[dict[str, str]]


@dataclass(frozen=True)
class Vision:
    """How a family's processor turns pictures into placeholders and tensors.

    `render(processor, messages)` writes a chat as a prompt with one placeholder for each picture.
    `image_tokens(processor, picture)` is the number of positions that a picture takes; only if the family is
    `sized` does it depend on the picture, and then on its size alone. `tensors(processor, pictures, texts,
    ids)` makes what the model needs beside `input_ids`  # (B, L), from each row's picture and last user text.
    If `chats`, earlier turns and a system text can be rendered. `text_error(processor, config, text)` says
    why the model with this `config` cannot read a text beside a picture; None if it can.
    """

    render: Callable[[Any, Sequence[Message]], str]
    image_tokens: Callable[[Any, Image.Image | None], int]
    tensors: Callable[[Any, Pictures, Sequence[str], Tensor], dict[str, Tensor]]
    sized: bool = False
    chats: bool = True
    text_error: Callable[[Any, Any, str], str | None] = lambda processor, config, text: None


@dataclass(frozen=True)
class ModelFamily:
    """One model family; module paths are those of the model without the wrappers of PEFT or DDP.

    `decoder` takes `inputs_embeds` and returns hidden states, `head` makes logits of them. `language`,
    `connector` and `vision` are regular expressions for the modules of each scope: a list of suffixes alone
    would match the vision tower too. `vision_linear` matches the vision tower's linear layers.
    `parameter_prefixes` are the prefixes of the parameters outside the language model, by scope.
    """

    model_type: str
    processor_class: str
    decoder: str
    head: str
    language: str
    connector: str
    vision: str
    vision_linear: str
    parameter_prefixes: Mapping[Scope, tuple[str, ...]]
    inputs: Vision

    def lora_targets(
        self, scope: Sequence[Scope] = ("language",), targets: Targets = "linear", first_layer: int = 0
    ) -> str:
        """The regular expression of the modules that get an adapter; PEFT matches it against whole names.

        first_layer: of the language model; the layers below it get none.
        """
        layers = LINEAR if targets == "linear" else ATTENTION
        below = "|".join(map(str, range(first_layer)))
        upper = rf"layers\.(?!(?:{below})\.).*" if first_layer else ""
        patterns = {
            "language": rf"{self.language}.*{upper}\.{layers}",
            "connector": self.connector,
            "vision": rf"{self.vision}.*\.{self.vision_linear}",
        }
        return "|".join(patterns[part] for part in scope)

    def scope_of(self, parameter: str) -> Scope:
        """The scope that a parameter of the unwrapped model belongs to, by its name."""
        for scope, prefixes in self.parameter_prefixes.items():
            if parameter.startswith(prefixes):
                return scope
        return "language"


def chat_content(text: str, image: object | None) -> list[dict[str, str]]:
    """The content of a chat message, picture first."""
    picture = [{"type": "image"}] if image is not None else []
    return [*picture, {"type": "text", "text": text}]


def _chat(processor: Any, messages: Sequence[Message]) -> str:
    return str(processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))


def _plain_prompt(processor: Any, messages: Sequence[Message]) -> str:
    """InstructBLIP has no chat template: query placeholder, begin token, text."""
    (message,) = messages
    *pictures, text = message["content"]
    placeholder = str(processor.image_token) if pictures else ""
    return f"{placeholder}{processor.tokenizer.bos_token or ''}{text['text']}"


def _clip_tokens(processor: Any, image: Image.Image | None) -> int:
    """The patches, and the class token if the strategy keeps it."""
    side = processor.image_processor.crop_size["height"] // processor.patch_size
    dropped = processor.vision_feature_select_strategy == "default"
    return int(side * side + processor.num_additional_image_tokens - dropped)


def _qwen_tokens(processor: Any, image: Image.Image | None) -> int:
    """The patches of the resized picture, merged."""
    assert image is not None  # the number depends on its size
    patches = processor.image_processor.get_number_of_image_patches(image.height, image.width, {})
    return int(patches // processor.image_processor.merge_size**2)


def _queries(processor: Any, image: Image.Image | None) -> int:
    return int(processor.num_query_tokens)


def _clip(processor: Any, pictures: Pictures, texts: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
    shown = [picture for picture in pictures if picture is not None]
    return {"pixel_values": clip_pixels(shown, processor)} if shown else {}


def clip_pixels(images: Sequence[Image.Image], processor: Any) -> Tensor:
    """Pictures as CLIP's normalised pixel values  # (N, 3, H, W); those of the model's own size are not
    resized."""
    crop = processor.image_processor.crop_size
    if any(image.size != (crop["width"], crop["height"]) for image in images):
        rgb = [image.convert("RGB") for image in images]
        return processor.image_processor(rgb, return_tensors="pt")["pixel_values"]
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return (torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255.0 - mean) / std


def _qwen(processor: Any, pictures: Pictures, texts: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
    """Without `mm_token_type_ids`, transformers silently gives every token the positions of plain text."""
    types = {"mm_token_type_ids": (ids == image_token_id(processor)).int()}
    shown = [picture.convert("RGB") for picture in pictures if picture is not None]
    if not shown:
        return types
    vision = processor.image_processor(shown, return_tensors="pt")
    return {**types, "pixel_values": vision["pixel_values"], "image_grid_thw": vision["image_grid_thw"]}


def _instructblip(processor: Any, pictures: Pictures, texts: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
    """The Q-Former reads the texts of the rows that have a picture. It always needs a picture: a batch
    without any gets a grey one, which no placeholder refers to."""
    rows = [(picture, text) for picture, text in zip(pictures, texts, strict=True) if picture is not None]
    rows = rows or [(Image.new("RGB", (32, 32), (128,) * 3), ".")]  # any text of the batch may be too long
    tokens = processor.qformer_tokenizer([text for _, text in rows], padding=True, return_tensors="pt")
    shown = [picture.convert("RGB") for picture, _ in rows]
    return {
        "pixel_values": processor.image_processor(shown, return_tensors="pt")["pixel_values"],
        "qformer_input_ids": tokens["input_ids"],
        "qformer_attention_mask": tokens["attention_mask"],
    }


def _qformer_error(processor: Any, config: Any, text: str) -> str | None:
    """The error message for a text that is longer than the Q-Former's table of positions."""
    count = len(processor.qformer_tokenizer(text).input_ids)
    limit = config.qformer_config.max_position_embeddings
    if count <= limit:
        return None
    return (
        f"takes {count} tokens in the Q-Former, which has {limit} positions for a text beside a picture; "
        "nothing is truncated: shorten its text"
    )


def _qwen_family(model_type: str, processor_class: str, vision_mlp: str) -> ModelFamily:
    return ModelFamily(
        model_type,
        processor_class,
        decoder="model.language_model",
        head="lm_head",
        language=r".*\.language_model\.",
        connector=r".*\.visual\.merger\.mlp\.[02]",
        vision=r".*\.visual\.blocks\.",
        vision_linear=f"(qkv|proj|{vision_mlp})",
        parameter_prefixes={"connector": ("model.visual.merger.",), "vision": ("model.visual.",)},
        inputs=Vision(_chat, _qwen_tokens, _qwen, sized=True),
    )


FAMILIES = {
    family.model_type: family
    for family in (
        ModelFamily(
            "llava",
            "LlavaProcessor",
            decoder="model.language_model",
            head="lm_head",
            language=r".*\.language_model\.",
            connector=r".*\.multi_modal_projector\.linear_[12]",
            vision=r".*\.vision_tower\.",
            vision_linear="(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
            parameter_prefixes={
                "connector": ("model.multi_modal_projector.",),
                "vision": ("model.vision_tower.",),
            },
            inputs=Vision(_chat, _clip_tokens, _clip),
        ),
        _qwen_family("qwen2_vl", "Qwen2VLProcessor", "fc1|fc2"),
        _qwen_family("qwen2_5_vl", "Qwen2_5_VLProcessor", "gate_proj|up_proj|down_proj"),
        ModelFamily(
            "instructblip",
            "InstructBlipProcessor",
            decoder="language_model.model",
            head="language_model.lm_head",
            language=r"language_model\.",
            connector=r"language_projection|qformer\..*\.(query|key|value|dense)",
            vision=r"vision_model\.",
            vision_linear="(qkv|projection|fc1|fc2)",
            parameter_prefixes={
                "connector": ("qformer.", "query_tokens", "language_projection."),
                "vision": ("vision_model.",),
            },
            inputs=Vision(_plain_prompt, _queries, _instructblip, chats=False, text_error=_qformer_error),
        ),
    )
}


def family_of(model_type: str) -> ModelFamily:
    """The family of a `config.model_type`; ConfigError if it is unknown."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise ConfigError(
            f"cannot train a model of type {model_type!r}; known: {', '.join(FAMILIES)}"
        ) from None


def vision_of(processor: Any) -> Vision:
    """How the family of this processor treats pictures; ConfigError if the processor is unknown."""
    name = type(processor).__name__
    for family in FAMILIES.values():
        if family.processor_class == name:
            return family.inputs
    known = ", ".join(family.processor_class for family in FAMILIES.values())
    raise ConfigError(f"cannot encode with a processor of type {name!r}; known: {known}")


def image_token_id(processor: Any) -> int:
    """The id of the placeholder that a picture's features replace."""
    return int(processor.tokenizer.convert_tokens_to_ids(str(processor.image_token)))
