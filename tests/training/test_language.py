"""TinyWorld's language: one token an answer, and a chat template spelled out by hand."""

from typing import Any

import jinja2
import pytest
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from modint_guard.data.item import LETTERS
from modint_guard.models import BASE, bundled
from modint_training.method.families import vision_of
from modint_training.tinyworld import draw, language
from modint_training.tinyworld.suite import SELF_ASK
from modint_training.tinyworld.tasks import TASKS

ANSWERS = sorted({choice for task in TASKS.values() for choice in task.choices} | set(LETTERS[:4]))
PICTURE = {"type": "image"}


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def rendered(processor: Any, *messages: dict[str, Any], **options: Any) -> str:
    return str(processor.apply_chat_template(list(messages), tokenize=False, **options))


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_answer_is_one_token_in_its_place(processor: Any, answer: str) -> None:
    tokenizer = processor.tokenizer
    prompt = tokenizer("<|begin|><|user|>What is it?<|end|><|assistant|>").input_ids
    whole = tokenizer(f"<|begin|><|user|>What is it?<|end|><|assistant|>{answer}<|end|>").input_ids
    assert whole[: len(prompt)] == prompt
    assert len(whole) == len(prompt) + 2
    assert tokenizer.decode(whole[-2]) == answer
    assert whole[-1] == tokenizer.eos_token_id


def test_every_special_is_one_token_of_its_own(processor: Any) -> None:
    tokenizer = processor.tokenizer
    assert [tokenizer(text).input_ids for text in language.SPECIAL] == [[index] for index in range(7)]
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (
        "<|pad|>",
        "<|begin|>",
        "<|end|>",
    )
    assert len(tokenizer) <= language.VOCABULARY


@pytest.mark.parametrize(
    "text", ["Ünïcode — “naïve” 漢字 🦊", "tabs\tand\nlines", SELF_ASK, "  two  blanks "]
)
def test_any_text_survives_its_tokens(processor: Any, text: str) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_two_trainings_give_the_same_tokenizer() -> None:
    first, second = (language.train_tokenizer(seed=3, prompts=300) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_training_makes_the_tokenizer_that_ships_with_the_base() -> None:
    made, shipped = language.train_tokenizer(), PreTrainedTokenizerFast.from_pretrained(bundled(BASE))
    assert made.backend_tokenizer.to_str() == shipped.backend_tokenizer.to_str()
    assert made.special_tokens_map == shipped.special_tokens_map


# The chat template


def test_a_turn_with_a_picture_and_a_text(processor: Any) -> None:
    turn = {"role": "user", "content": [PICTURE, said("What digit is shown?")]}
    assert rendered(processor, turn, add_generation_prompt=True) == (
        "<|begin|><|user|><image>What digit is shown?<|end|><|assistant|>"
    )


def test_several_texts_are_lines_of_one_turn(processor: Any) -> None:
    turn = {
        "role": "user",
        "content": [said("Caption: the digit 7."), PICTURE, said("Which digit is this?\nA. 3")],
    }
    assert rendered(processor, turn, add_generation_prompt=True) == (
        "<|begin|><|user|><image>Caption: the digit 7.\nWhich digit is this?\nA. 3<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    "picture", [{"type": "image"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
)
def test_a_picture_goes_first_by_whatever_name_it_comes(processor: Any, picture: dict[str, Any]) -> None:
    turn = {"role": "user", "content": [said("What is it?"), picture]}
    assert rendered(processor, turn) == "<|begin|><|user|><image>What is it?<|end|>"


def test_a_turn_can_be_a_string(processor: Any) -> None:
    turn = {"role": "user", "content": "What is 1 plus 2?"}
    assert rendered(processor, turn, add_generation_prompt=True) == (
        "<|begin|><|user|>What is 1 plus 2?<|end|><|assistant|>"
    )


def test_system_and_assistant_turns_have_their_own_tags(processor: Any) -> None:
    turns = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [said("What is 1 plus 2?")]},
        {"role": "assistant", "content": "3"},
    )
    assert rendered(processor, *turns) == (
        "<|begin|><|system|>Be brief.<|end|><|user|>What is 1 plus 2?<|end|><|assistant|>3<|end|>"
    )


def test_a_final_turn_can_be_continued(processor: Any) -> None:
    turns = ({"role": "user", "content": "Is it red?"}, {"role": "assistant", "content": "y"})
    assert rendered(processor, *turns, continue_final_message=True) == (
        "<|begin|><|user|>Is it red?<|end|><|assistant|>y"
    )


def test_the_template_has_no_line_break_that_jinja_could_trim() -> None:
    # vLLM renders with trim_blocks, which eats a line break after a block tag.
    assert "\n" not in language.CHAT_TEMPLATE.replace("'\n'", "")


def test_a_template_with_trimmed_blocks_says_the_same(processor: Any) -> None:
    turns = [{"role": "user", "content": [said("a"), PICTURE, said("b")]}]
    environments = (jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim) for trim in (False, True))
    texts = {
        environment.from_string(language.CHAT_TEMPLATE).render(messages=turns, add_generation_prompt=True)
        for environment in environments
    }
    assert texts == {rendered(processor, *turns, add_generation_prompt=True)}


# The processor


def test_a_picture_takes_a_token_a_patch_and_one_more(processor: Any) -> None:
    assert vision_of(processor).image_tokens(processor, None) == 5 * 5 + 1
    assert (processor.patch_size, processor.image_processor.crop_size) == (8, {"height": 40, "width": 40})


def test_a_saved_processor_is_the_same(processor: Any, tmp_path: Any) -> None:
    processor.save_pretrained(tmp_path)
    loaded = LlavaProcessor.from_pretrained(tmp_path)
    turn = {"role": "user", "content": [PICTURE, said("What digit is shown?")]}
    assert rendered(loaded, turn) == rendered(processor, turn)
    assert loaded.tokenizer(ANSWERS).input_ids == processor.tokenizer(ANSWERS).input_ids
    assert loaded.image_processor.crop_size["height"] == draw.SIZE
