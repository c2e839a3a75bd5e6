"""From items to tensors: the prompt as the engine's chat template writes it, the answer as labels.

Example: the one-word item "What digit is shown?" with a picture, the lying caption "Caption: the digit 3."
and the answer 7 becomes, token by token with its label and its part,

    <|begin|> <|user|>                  no label   FRAME
    <image> x 26                        no label   IMAGE
    Caption : Ġthe Ġdigit Ġ3 .          no label   CONTEXT
    Ċ                                   no label   FRAME
    What Ġdigit Ġis Ġshown ?            no label   ASKED
    <|end|> <|assistant|>               no label   FRAME
    7 <|end|>                           themselves ANSWER

so that the position before `7` predicts the answer and the position of `7` predicts the end. Without a label
the last line is one token, labelled UNKNOWN: the position before it, where an answer would begin, is compared
between twins, and nothing is learnt as the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from modint_guard.data.item import Item, prompt, reply_for
from modint_guard.errors import DataError
from modint_training.method.families import Message, chat_content, clip_pixels, image_token_id, vision_of
from modint_training.method.labels import IGNORED, UNKNOWN, Part

_STAND_IN = "\x02text\x03"  # where the user's text goes in a rendered prompt


@dataclass(frozen=True)
class Encoded:
    """Token ids, each position's label (IGNORED where no loss reads) and part, the picture, if any, and the
    user's text. Rows that no mask is made of may leave `parts` empty."""

    ids: list[int]
    labels: list[int]
    image: Image.Image | None = None
    parts: list[Part] = field(default_factory=list)
    text: str = ""

    @property
    def answer_length(self) -> int:
        """How many positions are answer tokens, end tokens included; without a label the one in their
        place."""
        return sum(label != IGNORED for label in self.labels)


def encode(item: Item, processor: Any) -> Encoded:
    """Tokenise an item with the processor's own chat template, placeholders expanded as it would do.

    Raises DataError where the item's text holds the placeholder, where the template changes the text, and for
    earlier turns or a system text where there is no template.
    """
    before, text, after = _rendered(item, processor)
    tokenizer = processor.tokenizer
    prompted = tokenizer(before + text + after, add_special_tokens=False, return_offsets_mapping=True)
    answer, labels = _answer(item, tokenizer)
    context = len(item.context) if item.context else 0
    spans = Spans(len(before), len(before) + context, len(before) + len(text))
    placeholder = image_token_id(processor)
    parts = [
        Part.IMAGE if token == placeholder else spans.part(*offset)
        for token, offset in zip(prompted.input_ids, prompted.offset_mapping, strict=True)
    ]
    return Encoded(
        ids=prompted.input_ids + answer,
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
    said = tokenizer(reply_for(item, item.answer), add_special_tokens=False).input_ids
    ids = [*said, tokenizer.eos_token_id]
    return ids, ids


@dataclass(frozen=True)
class Spans:
    """Where the user's text stands in a rendered prompt, in characters: its context from `start` to
    `context_end`, the separator, then what is asked, to `end`."""

    start: int
    context_end: int
    end: int

    def part(self, first: int, last: int) -> Part:
        """The part of a token that covers the characters [first, last): CONTEXT if any of them is context."""
        if first < self.context_end and last > self.start:
            return Part.CONTEXT
        asked = self.context_end + (self.context_end > self.start)  # one character, a newline, separates them
        return Part.ASKED if first < self.end and last > asked else Part.FRAME


def _rendered(item: Item, processor: Any) -> tuple[str, str, str]:
    """The prompt before, in and after the user's last text, with a picture's placeholder repeated in the
    first."""
    vision, text, token = vision_of(processor), prompt(item), str(processor.image_token)
    if any(token in said for said in (text, item.system, *(turn.text for turn in item.turns))):
        raise DataError(f"item {item.id}: its text holds the picture's placeholder {token!r}; remove it")
    if not vision.chats and (item.turns or item.system):
        raise DataError(
            f"item {item.id}: a model without a chat template reads one question and no more: leave out "
            "examples with earlier turns or a system text"
        )
    before = vision.render(processor, chat_of(item, _STAND_IN)).partition(_STAND_IN)[0]
    whole = vision.render(processor, chat_of(item, text))
    if not whole.startswith(before + text):
        raise DataError(
            f"item {item.id}: the chat template changes the user's text {text!r}, so that its tokens cannot "
            "be found; use a template that copies it"
        )
    shown = vision.image_tokens(processor, item.image) if item.image is not None else 0
    return before.replace(token, token * shown), text, whole[len(before) + len(text) :]


def chat_of(item: Item, text: str) -> list[Message]:
    """The chat that ends with `text`, as the engine is sent it (`runner.request_for`): system text, earlier
    turns, the picture in the turn it belongs to."""
    shown = not any(turn.has_image for turn in item.turns)
    system = [Message(role="system", content=chat_content(item.system, None))] if item.system else []
    before = [
        Message(role=turn.role, content=chat_content(turn.text, item.image if turn.has_image else None))
        for turn in item.turns
    ]
    asked = Message(role="user", content=chat_content(text, item.image if shown else None))
    return [*system, *before, asked]


def image_tokens(processor: Any, image: Image.Image | None = None) -> int:
    """How many positions a picture takes; for CLIP the same for every picture."""
    return vision_of(processor).image_tokens(processor, image)


def pixels(images: Sequence[Image.Image], processor: Any) -> Tensor:
    """Pictures of the model's own size as normalised values  # (N, 3, H, W)."""
    return clip_pixels(images, processor)


def collate(rows: Sequence[Encoded], processor: Any) -> dict[str, Tensor]:
    """Pad to the longest row: `input_ids`, `attention_mask`, `labels`  # (B, L), and what the family's
    pictures bring, such as `pixel_values`  # (images, 3, H, W)."""
    ids = _padded([row.ids for row in rows], processor.tokenizer.pad_token_id)
    batch = {
        "input_ids": ids,
        "attention_mask": _padded([[1] * len(row.ids) for row in rows], 0),
        "labels": _padded([row.labels for row in rows], IGNORED),
    }
    images, texts = [row.image for row in rows], [row.text for row in rows]
    return {**batch, **vision_of(processor).tensors(processor, images, texts, ids)}


def parts_of(rows: Sequence[Encoded]) -> Tensor:
    """The part of every position, PAD behind a row's end  # (B, L), int64."""
    return _padded([row.parts for row in rows], Part.PAD)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of unequal length as one tensor, filled up on the right  # (B, L), int64."""
    made = torch.full((len(rows), max(map(len, rows))), int(filler))
    for index, row in enumerate(rows):
        made[index, : len(row)] = torch.tensor(row)
    return made
