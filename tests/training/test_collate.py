"""From items to tensors: labels on the answer alone, and the same numbers the engine's processor makes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modint_guard.data.item import FAMILIES, Item, prompt, reply_for
from modint_guard.data.perturb import perturb
from modint_training.data.collate import collate, encode
from modint_training.method.families import chat_content, clip_pixels, vision_of
from modint_training.method.labels import IGNORED
from modint_training.tinyworld import suite

RED = Image.new("RGB", (40, 40), (255, 0, 51))
DIGIT = Item(
    id="d",
    family="image-heavy",
    task="digit",
    form="word",
    question="What digit is shown?",
    choices=tuple("0123456789"),
    answer="7",
    wrong="3",
    claim="the digit {}",
    image=RED,
)
SUM = DIGIT.replace(family="text-heavy", question="What is 1 plus 2?", answer="3", wrong="7", image=None)


def decoded(processor: Any, ids: list[int]) -> list[str]:
    return list(processor.tokenizer.convert_ids_to_tokens(ids))


def test_the_worked_example(processor: Any) -> None:
    row = encode(DIGIT, processor)
    assert decoded(processor, row.ids) == [
        *("<|begin|>", "<|user|>"),
        *["<image>"] * 26,
        *("What", "Ġdigit", "Ġis", "Ġshown", "?"),
        *("<|end|>", "<|assistant|>", "7", "<|end|>"),
    ]
    batch = collate([row], processor)
    labels = batch.labels[0]
    assert labels.tolist() == [IGNORED] * (len(row.ids) - 2) + row.ids[-2:]
    assert decoded(processor, labels[labels != IGNORED].tolist()) == ["7", "<|end|>"]


def test_a_lettered_item_is_labelled_with_its_letter(processor: Any) -> None:
    lettered = DIGIT.replace(form="letter", choices=("3", "7"))
    row = encode(lettered, processor)
    assert decoded(processor, row.ids[-2:]) == ["B", "<|end|>"]


def test_a_picture_takes_26_positions(processor: Any) -> None:
    assert vision_of(processor).image_tokens(processor, RED) == 26
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert encode(DIGIT, processor).ids.count(image_id) == 26
    assert encode(SUM, processor).ids.count(image_id) == 0


def test_a_processor_that_drops_the_class_token_gives_25(processor: Any) -> None:
    dropped = type(processor)(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    assert vision_of(dropped).image_tokens(dropped, RED) == 25


def test_shorter_rows_are_padded_on_the_right_and_never_labelled_there(processor: Any) -> None:
    rows = [encode(DIGIT, processor), encode(SUM, processor)]
    long, short = (len(row.ids) for row in rows)
    batch = collate(rows, processor)
    ids, mask, padding = batch.inputs["input_ids"], batch.inputs["attention_mask"], long - short
    assert ids.shape == batch.labels.shape == mask.shape == (2, long)
    assert ids[1].tolist() == rows[1].ids + [processor.tokenizer.pad_token_id] * padding
    assert mask.tolist() == [[1] * long, [1] * short + [0] * padding]
    assert batch.labels[1, short:].tolist() == [IGNORED] * padding
    assert (batch.labels != IGNORED).sum(dim=1).tolist() == [2, 2]


def test_only_rows_with_a_picture_bring_one(processor: Any) -> None:
    rows = [encode(item, processor) for item in (SUM, DIGIT, SUM, DIGIT)]
    assert collate(rows, processor).inputs["pixel_values"].shape == (2, 3, 40, 40)
    assert "pixel_values" not in collate(rows[:1], processor).inputs


def test_pixels_lie_between_minus_one_and_one(processor: Any) -> None:
    values = clip_pixels([RED], processor)
    assert values.dtype == torch.float32
    # 255 -> 1, 0 -> -1, 51 -> 2 * 0.2 - 1
    assert values[0, :, 5, 9].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_a_picture_without_colours_counts_as_grey(processor: Any) -> None:
    assert torch.equal(
        clip_pixels([Image.new("L", (40, 40), 51)], processor), torch.full((1, 3, 40, 40), 51 / 127.5 - 1)
    )


def trained_on() -> list[Item]:
    """Items of every family, form and kind of view."""
    clean = [item for family in FAMILIES for item in suite.items(family, "train", 8)]
    lied_to = [perturb(item, "misleading_description") for item in clean if item.family == "image-heavy"]
    shown = [perturb(item, "contradicting_image") for item in clean if item.family == "text-heavy"]
    return clean + lied_to + shown


@pytest.mark.parametrize(
    "item", trained_on(), ids=lambda item: f"{item.task}-{item.form}-{item.perturbation}"
)
def test_a_prompt_has_the_ids_and_pixels_that_the_processor_itself_makes(processor: Any, item: Item) -> None:
    """What transformers, and vLLM through it, feed the model for the same chat."""
    messages = [{"role": "user", "content": chat_content(prompt(item), item.image)}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    made = processor(text=text, images=item.image, return_tensors="np", add_special_tokens=False)
    row = encode(item, processor)
    assert row.ids[: -row.answer_length] == made["input_ids"][0].tolist()
    assert decoded(processor, row.ids[-row.answer_length :]) == [reply_for(item, item.answer), "<|end|>"]
    if item.image:
        np.testing.assert_allclose(clip_pixels([item.image], processor), made["pixel_values"], atol=1e-6)


def test_context_and_question_in_two_parts_read_like_one_string(processor: Any) -> None:
    item = perturb(DIGIT, "misleading_description")
    parts = [
        *chat_content(item.context or "", item.image),
        {"type": "text", "text": prompt(item.replace(context=None))},
    ]
    in_parts, in_one = (
        processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        for content in (parts, chat_content(prompt(item), item.image))
    )
    assert in_parts == in_one
