"""From items to tensors: the prompt as the engine's chat template writes it, the answer as labels.

Example: the one-word item "What digit is shown?" with a picture, the false caption "Caption: the digit 3."
and the answer 7 becomes, token by token with label and part,

    <|begin|> <|user|>                  no label   FRAME
    <image> x 26                        no label   IMAGE
    Caption : Ġthe Ġdigit Ġ3 .          no label   CONTEXT
    Ċ                                   no label   FRAME
    What Ġdigit Ġis Ġshown ?            no label   QUESTION
    <|end|> <|assistant|>               no label   FRAME
    7 <|end|>                           their ids  ANSWER

so that the position before `7` predicts the answer and the position of `7` predicts the end. Without a label
the last line is one token, labelled UNKNOWN: the position before it, where an answer would begin, is compared
between twins, and no answer is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from modint_guard.data.item import Item, prompt, reply_for
from modint_guard.errors import DataError
from modint_training.method.batch import Inputs
from modint_training.method.families import Message, chat_content, image_token_id, vision_of
from modint_training.method.labels import IGNORED, UNKNOWN, Part

_STAND_IN = "\x02text\x03"  # marks the place of the user's text in a rendered prompt


@dataclass(frozen=True)
class Encoded:
    """One row: token ids, the label of each position (IGNORED where no loss reads), its part, the picture if
    there is one, and the user's text. `parts` may be empty if no attack mask is made of the row."""

    ids: list[int]
    labels: list[int]
    image: Image.Image | None = None
    parts: list[Part] = field(default_factory=list)
    text: str = ""

    @property
    def answer_length(self) -> int:
        """The number of answer tokens, end token included; 1 for a row without a label."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Collated:
    """Rows padded on the right to the longest of them."""

    inputs: dict[
        str, Tensor
    ]  # `input_ids`, `attention_mask` (B, L) int64, and what the family's pictures bring
    labels: Tensor  # (B, L) int64, IGNORED where no loss reads


def encode(item: Item, processor: Any) -> Encoded:
    """Tokenise an item with the processor's own chat template; picture placeholders are repeated as the
    processor would repeat them.

    Raises DataError if the item's text contains the placeholder, if the template changes the text, and for
    earlier turns or a system text if the model has no chat template.
    """
    before, text, after = _rendered(item, processor)
    tokenizer = processor.tokenizer
    prompt_tokens = tokenizer(before + text + after, add_special_tokens=False, return_offsets_mapping=True)
    answer, labels = _answer(item, tokenizer)
    context = len(item.context) if item.context else 0
    spans = Spans(len(before), len(before) + context, len(before) + len(text))
    placeholder = image_token_id(processor)
    parts = [
        Part.IMAGE if token == placeholder else spans.part(*offset)
        for token, offset in zip(prompt_tokens.input_ids, prompt_tokens.offset_mapping, strict=True)
    ]
    return Encoded(
        ids=prompt_tokens.input_ids + answer,
        labels=[IGNORED] * len(parts) + labels,
        image=item.image,
        parts=parts + [Part.ANSWER] * len(answer),
        text=text,
    )


def _answer(item: Item, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The answer's tokens and their labels; without a label one position that stands for an answer, so that
    the position before it is read."""
    if not item.labelled:
        return [tokenizer.eos_token_id], [UNKNOWN]
    reply = tokenizer(reply_for(item, item.answer), add_special_tokens=False).input_ids
    ids = [*reply, tokenizer.eos_token_id]
    return ids, ids


@dataclass(frozen=True)
class Spans:
    """Where the user's text stands in a rendered prompt, in characters: its context from `start` to
    `context_end`, a separator, then the question up to `end`."""

    start: int
    context_end: int
    end: int

    def part(self, first: int, last: int) -> Part:
        """The part of a token that covers the characters [first, last): CONTEXT if any of them is context."""
        if first < self.context_end and last > self.start:
            return Part.CONTEXT
        question = self.context_end + (self.context_end > self.start)  # after one separating newline
        return Part.QUESTION if first < self.end and last > question else Part.FRAME


def _rendered(item: Item, processor: Any) -> tuple[str, str, str]:
    """The prompt before, in and after the user's last text, with each picture's placeholder repeated in the
    first of the three."""
    vision, text, token = vision_of(processor), prompt(item), str(processor.image_token)
    if any(token in part for part in (text, item.system, *(turn.text for turn in item.turns))):
        raise DataError(f"item {item.id}: its text holds the picture's placeholder {token!r}; remove it")
    if not vision.chats and (item.turns or item.system):
        raise DataError(
            f"item {item.id}: a model without a chat template reads a single question: leave out examples "
            "with earlier turns or a system text"
        )
    before = vision.render(processor, chat_messages(item, _STAND_IN)).partition(_STAND_IN)[0]
    whole = vision.render(processor, chat_messages(item, text))
    if not whole.startswith(before + text):
        raise DataError(
            f"item {item.id}: the chat template changes the user's text {text!r}, so that its tokens cannot "
            "be found; use a template that copies it"
        )
    count = vision.image_tokens(processor, item.image) if item.image is not None else 0
    return before.replace(token, token * count), text, whole[len(before) + len(text) :]


def chat_messages(item: Item, text: str) -> list[Message]:
    """The chat that ends with `text`, as the engine receives it (`runner.request_for`): system text, earlier
    turns, and the picture in the turn that it belongs to."""
    in_last_turn = not any(turn.has_image for turn in item.turns)
    system = [Message(role="system", content=chat_content(item.system, None))] if item.system else []
    before = [
        Message(role=turn.role, content=chat_content(turn.text, item.image if turn.has_image else None))
        for turn in item.turns
    ]
    last = Message(role="user", content=chat_content(text, item.image if in_last_turn else None))
    return [*system, *before, last]


def collate(rows: Sequence[Encoded], processor: Any) -> Collated:
    """Pad rows to the longest; the inputs of a model with CLIP include `pixel_values`  # (images, 3, H,
    W)."""
    ids = _padded([row.ids for row in rows], processor.tokenizer.pad_token_id)
    images, texts = [row.image for row in rows], [row.text for row in rows]
    inputs = {
        "input_ids": ids,
        "attention_mask": _padded([[1] * len(row.ids) for row in rows], 0),
        **vision_of(processor).tensors(processor, images, texts, ids),
    }
    return Collated(inputs, labels=_padded([row.labels for row in rows], IGNORED))


def on_device(inputs: Inputs, device: torch.device) -> dict[str, Tensor]:
    """The same inputs on a device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def parts_of(rows: Sequence[Encoded]) -> Tensor:
    """The part of every position, PAD behind a row's end  # (B, L) int64."""
    return _padded([row.parts for row in rows], Part.PAD)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of unequal length as one tensor, filled up on the right  # (B, L) int64."""
    padded = torch.full((len(rows), max(map(len, rows))), int(filler))
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    return padded
