"""What is question and what is context in one string."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.split import split_text


def parts(text: str) -> tuple[str, str, dict[str, str]]:
    split = split_text(text)
    return (
        "|".join(text[a:b] for a, b in split.question),
        "|".join(text[a:b] for a, b in split.context),
        {option.label: option.text for option in split.options},
    )


@pytest.mark.parametrize(
    ("text", "question", "context"),
    [
        (
            "The picture shows a red ball.\nWhat colour is it?",
            "What colour is it?",
            "The picture shows a red ball.",
        ),
        ("It is red. It is round. What is it?", "What is it?", "It is red. It is round."),
        ("What is it? The caption says a cat.", "What is it?", "The caption says a cat."),
        ("It is a cat. Name the animal.", "Name the animal.", "It is a cat."),
        ("The note says: seven.\nThe digit is", "The digit is", "The note says: seven."),
        (
            "Look at the image.\nIt is red.\nWhat colour?",
            "Look at the image.|What colour?",
            "It is red.",
        ),
        (
            "Context: a dog ran. Question: What ran? Answer:",
            "Question: What ran? Answer:",
            "Context: a dog ran.",
        ),
        (
            "Context:\na dog ran\n\nQuestion:\nWhat ran?\n\nAnswer:",
            "Question:\nWhat ran?\n\nAnswer:",
            "Context:\na dog ran",
        ),
        ("It is red. What is it? Answer with one word.", "What is it? Answer with one word.", "It is red."),
        (
            "It is red. Which is it? Reply with one word: red or blue.",
            "Which is it? Reply with one word: red or blue.",
            "It is red.",
        ),
        ("It holds vitamin A. What colour is it?", "What colour is it?", "It holds vitamin A."),
        ("Dr. Smith waved. What did Mr. Jones do?", "What did Mr. Jones do?", "Dr. Smith waved."),
        ("It weighs 3.5 kg. How heavy is it?", "How heavy is it?", "It weighs 3.5 kg."),
        ("Tom has 3.\nIs it few? How many has he?", "Is it few? How many has he?", "Tom has 3."),
        ("Use the caption: red. What is it?", "What is it?", "Use the caption: red."),
    ],
)
def test_context_is_told_from_the_question(text: str, question: str, context: str) -> None:
    assert parts(text)[:2] == (question, context)


@pytest.mark.parametrize(
    "text", ["What is 2 plus 3?", "Describe the image.", "Foo. Bar.", "red", "A. red B. blue"]
)
def test_where_nothing_can_be_told_apart_all_is_question(text: str) -> None:
    assert parts(text)[:2] == (text, "")


@pytest.mark.parametrize(
    "block",
    [
        "A. red\nB. blue",
        "A) red\nB) blue",
        "(A) red (B) blue",
        "[A] red [B] blue",
        "A: red\nB: blue",
        "A. red B. blue",
        "Options: A. red B. blue",
        "Options:\nA. red\nB. blue",
        "- A. red\n- B. blue",
        "(A) red\n(B) blue",
        "A. red, B. blue",
    ],
)
def test_option_blocks_belong_to_the_question(block: str) -> None:
    question, context, options = parts(f"The ball is blue.\nWhat colour is it?\n{block}")
    assert (question, context) == (f"What colour is it?\n{block}", "The ball is blue.")
    assert options == {"A": "red", "B": "blue"}


def test_numbered_and_small_labels_count_at_the_start_of_a_line() -> None:
    assert parts("Which?\n1. red\n2. blue\n3. green")[2] == {"1": "red", "2": "blue", "3": "green"}
    assert parts("Which?\na. red\nb. blue")[2] == {"a": "red", "b": "blue"}
    assert parts("Is 1. 2. or 3. right?")[2] == {}


def test_what_follows_the_options_is_context_unless_it_says_how_to_answer() -> None:
    question, context, options = parts(
        "Which? A. red B. blue. Answer with the letter.\nThe caption says it is red."
    )
    assert question == "Which? A. red B. blue. Answer with the letter."
    assert context == "The caption says it is red."
    assert options == {"A": "red", "B": "blue"}


def test_the_sentence_before_the_options_asks_even_without_a_question_mark() -> None:
    assert (
        parts("He asked: why? It is red.\nThe colour is\nA. red\nB. blue")[0]
        == "The colour is\nA. red\nB. blue"
    )


def test_a_lone_label_is_no_option_block() -> None:
    assert parts("Plan A. works. Is it good?")[2] == {}


@given(st.text(max_size=200))
def test_question_and_context_share_no_character_and_leave_out_blanks_only(text: str) -> None:
    split = split_text(text)
    pieces = sorted((*split.question, *split.context))
    assert all(a < b for a, b in pieces)
    assert all(first[1] <= second[0] for first, second in pairwise(pieces))
    covered = {i for a, b in pieces for i in range(a, b)}
    assert all(text[i].isspace() for i in range(len(text)) if i not in covered)
    assert bool(split.question) == bool(text.strip())


@pytest.mark.parametrize(
    "piece",
    [
        "Is it? ",
        "A. ",
        "A. B. ",
        "a\n",
        "\n",
        "1. ",
        "answer word ",
        '."',
        "options: ",
        "( ",
        "Mr. ",
        "A. red B. blue ",
    ],
)
def test_a_long_hostile_text_is_split_all_the_same(piece: str) -> None:
    text = piece * (60_000 // len(piece))
    split = split_text(text)
    assert bool(split.question) == bool(text.strip())
