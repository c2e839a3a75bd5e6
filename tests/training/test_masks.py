"""Masks: losses read where the answer is decided, attacks touch what must not matter and nothing else."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modint_guard.data.item import FAMILIES, Item
from modint_guard.data.perturb import perturb
from modint_training.data.collate import encode, parts_of
from modint_training.method.labels import IGNORED, Part
from modint_training.method.masks import (
    IMAGE_HEAVY,
    TEXT_HEAVY,
    VQA,
    answer_mask,
    answer_tokens,
    flat_indices,
    modality_mask,
    predicting_mask,
)
from modint_training.recipe import AttackMask
from modint_training.tinyworld import suite

# A prompt of two tokens, a one-letter answer (5), the end (1), padding.
LABELS = torch.tensor([[IGNORED, IGNORED, 5, 1, IGNORED], [IGNORED, IGNORED, IGNORED, 4, 1]])
DIGIT = Item(
    id="d",
    family="image-heavy",
    task="digit",
    form="letter",
    question="What digit is shown?",
    choices=("3", "7"),
    answer="7",
    wrong="3",
    claim="the digit {}",
    context="Caption: the digit 3.",
    image=Image.new("RGB", (40, 40), (255, 0, 51)),
)
KINDS: tuple[AttackMask, ...] = ("span", "modality", "none")


# Where losses read


def test_the_answer_mask_covers_the_answer_and_its_end() -> None:
    assert answer_mask(LABELS).int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


def test_the_predicting_mask_is_the_answer_mask_one_to_the_left() -> None:
    assert predicting_mask(LABELS).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]


def test_the_decision_of_a_one_letter_answer_is_read() -> None:
    # Defect 1 of the reference code: it reads at t, so for the answer at position 2 it sees what position 2
    # predicts (the end) and never what position 1 predicts (the answer).
    letter = torch.tensor([[IGNORED, IGNORED, 5]])
    assert predicting_mask(letter).tolist() == [[False, True, False]]
    assert answer_tokens(letter).tolist() == [5]


def test_masks_are_bool_and_predicted_tokens_are_in_the_order_of_their_logits() -> None:
    assert answer_mask(LABELS).dtype == predicting_mask(LABELS).dtype == torch.bool
    assert answer_tokens(LABELS).tolist() == [5, 1, 4, 1]
    positions = torch.arange(10).reshape(2, 5)
    assert positions[predicting_mask(LABELS)].tolist() == [1, 2, 7, 8]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_each_answer_token_has_one_predicting_position(rows: list[tuple[int, int, int]]) -> None:
    length = max(map(sum, rows))
    labels = torch.full((len(rows), length), IGNORED)
    for index, (before, answer, _) in enumerate(rows):
        labels[index, before : before + answer] = torch.arange(answer) + 10
    assert predicting_mask(labels).sum(dim=1).tolist() == [answer for _, answer, _ in rows]
    assert torch.equal(labels[answer_mask(labels)], answer_tokens(labels))


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_tokens_are_found_among_those_of_all_rows(rows: list[list[bool]], data: st.DataObject) -> None:
    mask = torch.tensor(rows)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)), dtype=torch.long)
    states = torch.arange(mask.numel()).view(mask.shape)
    assert torch.equal(states[mask][flat_indices(chosen, mask)], states[chosen][mask[chosen]])


# What an attack may touch


def attacked(item: Item, kind: AttackMask, processor: Any) -> str:
    """The text of an item that an attack may touch."""
    row = encode(item, processor)
    mask = modality_mask(parts_of([row]), torch.tensor([FAMILIES.index(item.family)]), kind)[0]
    return str(processor.tokenizer.decode([token for token, hit in zip(row.ids, mask, strict=True) if hit]))


def test_the_worked_example_has_a_part_for_every_token(processor: Any) -> None:
    row = encode(DIGIT, processor)
    of = {part: [token for token, at in zip(row.ids, row.parts, strict=True) if at == part] for part in Part}
    assert len(of[Part.IMAGE]) == 26 and of[Part.PAD] == []
    assert processor.tokenizer.decode(of[Part.CONTEXT]) == "Caption: the digit 3."
    assert processor.tokenizer.decode(of[Part.QUESTION]) == "What digit is shown?\nA. 3\nB. 7"
    assert processor.tokenizer.decode(of[Part.FRAME]) == "<|begin|><|user|>\n<|end|><|assistant|>"
    assert processor.tokenizer.decode(of[Part.ANSWER]) == "B<|end|>"


def test_span_touches_the_injected_context_alone(processor: Any) -> None:
    assert attacked(DIGIT, "span", processor) == "Caption: the digit 3."
    assert attacked(DIGIT.replace(context=None), "span", processor) == ""


def test_modality_touches_every_text_token_before_the_answer_as_the_paper_does(processor: Any) -> None:
    text = "Caption: the digit 3.\nWhat digit is shown?\nA. 3\nB. 7"
    assert attacked(DIGIT, "modality", processor) == f"<|begin|><|user|>{text}<|end|><|assistant|>"


def test_text_heavy_rows_are_attacked_in_their_picture(processor: Any) -> None:
    shown = DIGIT.replace(family="text-heavy")
    for kind in ("span", "modality"):
        assert attacked(shown, kind, processor) == "<image>" * 26
    assert attacked(shown.replace(image=None), "span", processor) == ""


def test_without_a_mask_everything_before_the_answer_is_touched(processor: Any) -> None:
    prompted = processor.tokenizer.decode(encode(DIGIT, processor).ids[:-2])
    for family in ("image-heavy", "text-heavy", "vqa"):
        assert attacked(DIGIT.replace(family=family), "none", processor) == prompted


@pytest.mark.parametrize("kind", ["span", "modality"])
def test_rows_that_need_both_modalities_are_attacked_by_no_mask(kind: AttackMask, processor: Any) -> None:
    assert attacked(DIGIT.replace(family="vqa"), kind, processor) == ""


PARTS = st.lists(st.sampled_from(list(Part)), min_size=6, max_size=6)


@given(st.lists(st.tuples(PARTS, st.sampled_from((IMAGE_HEAVY, TEXT_HEAVY, VQA))), min_size=1, max_size=4))
def test_answers_and_padding_are_never_attacked_and_the_masks_are_nested(
    rows: list[tuple[list[Part], int]],
) -> None:
    parts = torch.tensor([parts for parts, _ in rows])
    families = torch.tensor([family for _, family in rows])
    span, modality, none = (modality_mask(parts, families, kind) for kind in KINDS)
    never = (parts == Part.ANSWER) | (parts == Part.PAD)
    assert span.dtype == torch.bool and not (none & never).any()
    assert not (span & ~modality).any() and not (modality & ~none).any()


@pytest.mark.parametrize("name", ["misleading_description", "unrelated_facts", "ocr_noise"])
def test_the_span_of_any_context_decodes_to_that_context(name: str, processor: Any) -> None:
    for clean in suite.items("image-heavy", "train", 8):
        item = perturb(clean, name)
        row = encode(item, processor)
        held = [token for token, part in zip(row.ids, row.parts, strict=True) if part == Part.CONTEXT]
        assert processor.tokenizer.decode(held).strip("\n") == item.context
