"""From labelled items to tensors: the prompt as the engine's chat template writes it, the answer as labels.

Example: the one-word item "What digit is shown?" with a picture and the answer 7 becomes

    input_ids  <|begin|> <|user|> <image>x26 What Ġdigit ... ? <|end|> <|assistant|> 7 <|end|>
    labels     -100 ....................................................................... 7 <|end|>

so that the position before `7` predicts the answer and the position of `7` predicts the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modint_guard.item import Item, prompt, reply_for
from modint_training.tinyworld.language import USER
from modint_training.tinyworld.recall import Row

IGNORED = -100  # label of a position that no loss reads


@dataclass(frozen=True)
class Encoded:
    """Token ids, each position's label (IGNORED where no loss reads), and the picture, if any."""

    ids: list[int]
    labels: list[int]
    image: Image.Image | None = None

    @property
    def answer_length(self) -> int:
        """How many positions are answer tokens, end tokens included."""
        return sum(label != IGNORED for label in self.labels)


def chat_content(text: str, image: object | None) -> list[dict[str, Any]]:
    """The user content of a chat message, picture first."""
    picture = [{"type": "image"}] if image is not None else []
    return [*picture, {"type": "text", "text": text}]


def encode(item: Item, processor: Any) -> Encoded:
    """Tokenise an item with the processor's own chat template, placeholders expanded as it would do."""
    messages = [{"role": "user", "content": chat_content(prompt(item), item.image)}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expanded = text.replace(processor.image_token, processor.image_token * image_tokens(processor))
    tokenizer = processor.tokenizer
    ids = tokenizer(expanded, add_special_tokens=False).input_ids
    answer = tokenizer(reply_for(item, item.answer), add_special_tokens=False).input_ids
    answer = [*answer, tokenizer.eos_token_id]
    return Encoded(ids + answer, [IGNORED] * len(ids) + answer, item.image)


def encode_recall(row: Row, processor: Any) -> Encoded:
    """A user turn of what is given and one line `named:wanted` a query; only what is wanted is a label."""
    tokenizer = processor.tokenizer
    picture = processor.image_token * image_tokens(processor) if row.image is not None else ""
    given = f"{tokenizer.bos_token}{USER}{picture}{row.head}"
    ids = tokenizer(given, add_special_tokens=False).input_ids
    labels = [IGNORED] * len(ids)
    for named, wanted in row.queries:
        cue = tokenizer(f"\n{named}:", add_special_tokens=False).input_ids
        answer = tokenizer(wanted, add_special_tokens=False).input_ids  # the token of a whole answer
        ids, labels = ids + cue + answer, labels + [IGNORED] * len(cue) + answer
    return Encoded(ids, labels, row.image)


def image_tokens(processor: Any) -> int:
    """How many positions one picture takes: its patches, and the class token where the strategy keeps it."""
    side = processor.image_processor.crop_size["height"] // processor.patch_size
    dropped = processor.vision_feature_select_strategy == "default"
    return int(side * side + processor.num_additional_image_tokens - dropped)


def pixels(images: Sequence[Image.Image], processor: Any) -> Tensor:
    """Pictures of the model's own size as normalised values  # (N, 3, H, W)."""
    mean, std = processor.image_processor.image_mean[0], processor.image_processor.image_std[0]
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return (torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255.0 - mean) / std


def collate(rows: Sequence[Encoded], processor: Any) -> dict[str, Tensor]:
    """Pad to the longest row: `input_ids`, `attention_mask`, `labels`  # (B, L), `pixel_values`  # (images,
    3, H, W)."""
    length = max(len(row.ids) for row in rows)
    shape = (len(rows), length)
    ids = torch.full(shape, processor.tokenizer.pad_token_id)
    labels = torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for index, row in enumerate(rows):
        end = len(row.ids)
        ids[index, :end] = torch.tensor(row.ids)
        mask[index, :end] = 1
        labels[index, :end] = torch.tensor(row.labels)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    images = [row.image for row in rows if row.image is not None]
    return {**batch, "pixel_values": pixels(images, processor)} if images else batch
