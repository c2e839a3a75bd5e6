"""What differs between model families, as one small record each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modint_guard.errors import ConfigError
from modint_training.recipe import Scope, Targets

Pictures = Sequence[Image.Image | None]  # one a row, None where the row has none
Message = dict[str, Any]  # of a chat: role, and content as a list of parts

LINEAR = "(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
ATTENTION = "(q_proj|k_proj|v_proj|o_proj)"


@dataclass(frozen=True)
class Vision:
    """How a family's processor turns pictures into placeholders and tensors.

    `render(processor, messages)` writes a chat as a prompt with one placeholder a picture; `image_tokens`
    counts the positions a picture takes, the same for all unless they are `sized`: by their sizes alone;
    `tensors(processor, pictures, texts, ids)` makes what the model wants beside `input_ids` # (B, L), from
    each row's picture and last user text. Where it `chats`, earlier turns and a system text can be rendered.
    `unread(processor, config, text)` says what keeps a text beside a picture from being read by the model of
    that `config`, None where nothing does.
    """

    render: Callable[[Any, Sequence[Message]], str]
    image_tokens: Callable[[Any, Image.Image | None], int]
    tensors: Callable[[Any, Pictures, Sequence[str], Tensor], dict[str, Tensor]]
    sized: bool = False
    chats: bool = True
    unread: Callable[[Any, Any, str], str | None] = lambda processor, config, text: None


@dataclass(frozen=True)
class ModelFamily:
    """Module paths count from the bare model, without the wrappers of PEFT or DDP.

    `decoder` takes `inputs_embeds` and returns hidden states, `head` makes logits of them. `language`,
    `connector` and `vision` are the prefixes of a scope's modules as regular expressions: a bare list of
    suffixes would hit the vision tower too. `vision_linear` names the vision tower's linear layers.
    """

    model_type: str
    processor_class: str
    decoder: str
    head: str
    language: str
    connector: str
    vision: str
    vision_linear: str
    places: Mapping[Scope, tuple[str, ...]]
    inputs: Vision

    def lora_targets(self, scope: Sequence[Scope] = ("language",), targets: Targets = "linear") -> str:
        """The regular expression of the modules that get an adapter; PEFT matches it against whole names."""
        named = LINEAR if targets == "linear" else ATTENTION
        of = {
            "language": rf"{self.language}.*\.{named}",
            "connector": self.connector,
            "vision": rf"{self.vision}.*\.{self.vision_linear}",
        }
        return "|".join(of[part] for part in scope)

    def scope_of(self, parameter: str) -> Scope:
        """The scope that a parameter of the bare model belongs to, by its name."""
        for scope, prefixes in self.places.items():
            if parameter.startswith(prefixes):
                return scope
        return "language"


def chat_content(text: str, image: object | None) -> list[dict[str, Any]]:
    """The user content of a chat message, picture first."""
    picture = [{"type": "image"}] if image is not None else []
    return [*picture, {"type": "text", "text": text}]


def _chat(processor: Any, messages: Sequence[Message]) -> str:
    return str(processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))


def _bare_prompt(processor: Any, messages: Sequence[Message]) -> str:
    """InstructBLIP has no chat template: queries, then the begin token, then the text."""
    (message,) = messages
    *pictures, text = message["content"]
    placeholder = str(processor.image_token) if pictures else ""
    return f"{placeholder}{processor.tokenizer.bos_token or ''}{text['text']}"


def _clip_tokens(processor: Any, image: Image.Image | None) -> int:
    """The patches, and the class token where the strategy keeps it."""
    side = processor.image_processor.crop_size["height"] // processor.patch_size
    dropped = processor.vision_feature_select_strategy == "default"
    return int(side * side + processor.num_additional_image_tokens - dropped)


def _qwen_tokens(processor: Any, image: Image.Image | None) -> int:
    """The patches of the resized picture, merged."""
    assert image is not None  # how many depends on its size
    patches = processor.image_processor.get_number_of_image_patches(image.height, image.width, {})
    return int(patches // processor.image_processor.merge_size**2)


def _queries(processor: Any, image: Image.Image | None) -> int:
    return int(processor.num_query_tokens)


def _clip(processor: Any, pictures: Pictures, texts: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
    shown = [picture for picture in pictures if picture is not None]
    return {"pixel_values": clip_pixels(shown, processor)} if shown else {}


def clip_pixels(images: Sequence[Image.Image], processor: Any) -> Tensor:
    """Normalised values  # (N, 3, H, W); pictures of the model's own size need no resizing."""
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
    """Without `mm_token_type_ids` transformers gives every token the positions of plain text, silently."""
    kinds = {"mm_token_type_ids": (ids == image_token_id(processor)).int()}
    shown = [picture.convert("RGB") for picture in pictures if picture is not None]
    if not shown:
        return kinds
    made = processor.image_processor(shown, return_tensors="pt")
    return {**kinds, "pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}


def _instructblip(processor: Any, pictures: Pictures, texts: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
    """The Q-Former reads the text of the rows with a picture; it always wants one: a batch without any brings
    a grey one that no placeholder takes up."""
    rows = [(picture, text) for picture, text in zip(pictures, texts, strict=True) if picture is not None]
    rows = rows or [(Image.new("RGB", (32, 32), (128,) * 3), ".")]  # any text of the batch may be too long
    asked = processor.qformer_tokenizer([text for _, text in rows], padding=True, return_tensors="pt")
    shown = [picture.convert("RGB") for picture, _ in rows]
    return {
        "pixel_values": processor.image_processor(shown, return_tensors="pt")["pixel_values"],
        "qformer_input_ids": asked["input_ids"],
        "qformer_attention_mask": asked["attention_mask"],
    }


def _too_long_for_queries(processor: Any, config: Any, text: str) -> str | None:
    """What to say of a text for which the Q-Former's table of positions is too short."""
    count = len(processor.qformer_tokenizer(text).input_ids)
    most = config.qformer_config.max_position_embeddings
    if count <= most:
        return None
    return (
        f"takes {count} tokens in the Q-Former, which has {most} positions for a text beside a picture; "
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
        places={"connector": ("model.visual.merger.",), "vision": ("model.visual.",)},
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
            places={"connector": ("model.multi_modal_projector.",), "vision": ("model.vision_tower.",)},
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
            places={
                "connector": ("qformer.", "query_tokens", "language_projection."),
                "vision": ("vision_model.",),
            },
            inputs=Vision(_bare_prompt, _queries, _instructblip, chats=False, unread=_too_long_for_queries),
        ),
    )
}


def family_of(model_type: str) -> ModelFamily:
    """The record of a `config.model_type`; ConfigError names the known ones."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise ConfigError(
            f"cannot train a model of type {model_type!r}; known: {', '.join(FAMILIES)}"
        ) from None


def vision_of(processor: Any) -> Vision:
    """How this processor's family treats pictures; ConfigError names the known processors."""
    name = type(processor).__name__
    for family in FAMILIES.values():
        if family.processor_class == name:
            return family.inputs
    known = ", ".join(family.processor_class for family in FAMILIES.values())
    raise ConfigError(f"cannot encode with a processor of type {name!r}; known: {known}")


def image_token_id(processor: Any) -> int:
    """The id of the placeholder that a picture's features replace."""
    return int(processor.tokenizer.convert_tokens_to_ids(str(processor.image_token)))
