"""What a local model replies to items, whole replies of several tokens, in batches."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from modint_guard.data.item import Item, is_right
from modint_training.data.collate import Encoded, encode, on_device
from modint_training.method.families import vision_of

ROWS = 16  # of a batch
MOST_TOKENS = 32  # of a reply


def right(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[bool]:
    """Which replies are right."""
    texts = replies(model, processor, items)
    return [is_right(item, text) for item, text in zip(items, texts, strict=True)]


@torch.no_grad()
def replies(model: nn.Module, processor: Any, items: Sequence[Item]) -> list[str]:
    """The greedy reply to each item, in the items' order."""
    training = model.training
    model.eval()
    reply_texts = dict(_in_batches(model, processor, items))
    model.train(training)
    return [reply_texts[place] for place in range(len(items))]


def _in_batches(model: nn.Module, processor: Any, items: Sequence[Item]) -> Iterator[tuple[int, str]]:
    """Places of items, each with the reply; a batch has a picture in every row, or in none."""
    rows = [encode(item, processor) for item in items]
    with_picture = [place for place, row in enumerate(rows) if row.image is not None]
    without = [place for place, row in enumerate(rows) if row.image is None]
    for group in (with_picture, without):
        order = sorted(group, key=lambda place: len(rows[place].ids))
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            yield from zip(
                chosen, _generated(model, processor, [rows[place] for place in chosen]), strict=True
            )


def _generated(model: nn.Module, processor: Any, rows: Sequence[Encoded]) -> list[str]:
    inputs = _inputs(model, processor, rows)
    tokenizer, generate = processor.tokenizer, cast(Any, model).generate
    token_ids = generate(
        **inputs,
        max_new_tokens=MOST_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(token_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [str(text) for text in texts]


def _inputs(model: nn.Module, processor: Any, rows: Sequence[Encoded]) -> dict[str, Any]:
    """Prompts padded on the left, with their pictures, where the model is."""
    prompts = [row.ids[: len(row.ids) - row.answer_length] for row in rows]
    length, pad = max(map(len, prompts)), processor.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    vision = vision_of(processor)
    images, texts = [row.image for row in rows], [row.text for row in rows]
    inputs = {"input_ids": ids, "attention_mask": mask, **vision.tensors(processor, images, texts, ids)}
    return on_device(inputs, next(model.parameters()).device)
