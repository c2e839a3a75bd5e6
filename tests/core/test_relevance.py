"""The lexical rules: which modality ought to decide."""

import pytest

from modint_guard.chat.relevance import by_lexical_rules, decide
from modint_guard.chat.request import parse
from modint_guard.types import ModintOptions, Relevant
from tests.core.fakes import ask


@pytest.mark.parametrize(
    ("question", "relevant"),
    [
        ("What animal is in the image?", "image"),
        ("What is shown here?", "image"),
        ("How many people do you see?", "image"),
        ("Describe this photo.", "image"),
        ("Look at the drawing. Which one is taller?", "image"),
        ("What does the text in the image say?", "image"),
        ("Which word is written on this picture?", "image"),
        ("What is the woman depicted doing?", "image"),
        ("What is 12 plus 30?", "text"),
        ("What is 3 * 4?", "text"),
        ("How much is seven minus two?", "text"),
        ("Which is larger, 3 or 5?", "text"),
        ("What is the sum of 3 and 4?", "text"),
        ("What is the digit in the picture plus two?", "both"),
        ("Who wrote Hamlet?", "unknown"),
        ("Is it so?", "unknown"),
    ],
)
def test_the_question_names_the_modality(question: str, relevant: str) -> None:
    assert by_lexical_rules(question, None) == relevant


PASSAGE = "Ann left first. It rained, and Tom bought an old dog."


@pytest.mark.parametrize(
    ("question", "relevant"),
    [
        ("According to the passage, who left first?", "text"),
        ("In the note, what does Ann buy?", "text"),
        ("What does the article say about rain?", "text"),
        ("Give the date in the letter.", "text"),
        ("Does the picture match the description?", "both"),
        ("According to the text, is the dog in the picture old?", "both"),
    ],
)
def test_a_text_that_the_question_names_decides_where_there_is_one(question: str, relevant: str) -> None:
    assert by_lexical_rules(question, PASSAGE) == relevant


@pytest.mark.parametrize(
    "question",
    [
        "What is the date mentioned in the letter?",
        "According to the document, who is the sender?",
        "What does the letter say about rent?",
        "Based on the report, what is the revenue of 2019?",
        "What is the total on the invoice?",
        "What is written on this label?",
        "How many lines are in the table?",
    ],
)
def test_a_text_that_the_question_names_is_in_the_picture_where_nothing_else_is_text(question: str) -> None:
    assert by_lexical_rules(question, None) is Relevant.IMAGE


@pytest.mark.parametrize(
    "how",
    [
        "Answer with the letter only.",
        "Reply with only the letter of the right option.",
        "Pick one from the list.",
        "Answer in one short sentence.",
        "Just the letter, please.",
        "The letter only.",
    ],
)
def test_the_letter_to_answer_with_is_no_text_to_read(how: str) -> None:
    assert by_lexical_rules(f"What colour is the car in the picture?\n{how}", None) is Relevant.IMAGE
    assert by_lexical_rules(f"What colour is the car?\nA. red\nB. blue\n{how}", None) is Relevant.IMAGE
    assert by_lexical_rules(f"Is it so?\nA. yes\nB. no\n{how}", PASSAGE) is Relevant.UNKNOWN


@pytest.mark.parametrize(
    "question",
    ["Can a helicopter be seen here?", "Please name what you can see.", "Is this a cat? Yes or no."],
)
def test_questions_about_what_can_be_seen_are_about_the_picture(question: str) -> None:
    assert by_lexical_rules(question, None) is Relevant.IMAGE


@pytest.mark.parametrize(
    "question",
    [
        "What colour is the car?",
        "Which shape is this?",
        "How many dogs are there?",
        "What is the man wearing?",
    ],
)
def test_weak_signs_of_the_image_count_only_where_no_text_competes(question: str) -> None:
    assert by_lexical_rules(question, None) is Relevant.IMAGE
    assert by_lexical_rules(question, "The photo shows a red car.") is Relevant.IMAGE
    assert by_lexical_rules(question, "Tom owns two dogs and a red car.") is Relevant.UNKNOWN


def test_the_context_alone_is_no_reason_to_look_at_the_picture() -> None:
    assert by_lexical_rules("Who left first?", "The picture shows two men.") is Relevant.UNKNOWN


def test_the_request_comes_before_the_rules() -> None:
    chat = parse(ask("What is 2 plus 3?"))
    assert decide(chat) == (Relevant.TEXT, "rules")
    assert decide(chat, ModintOptions(relevant=Relevant.IMAGE, relevant_source="header")) == (
        Relevant.IMAGE,
        "header",
    )
    assert decide(chat, ModintOptions(relevant=Relevant.BOTH)) == (Relevant.BOTH, "request")
    assert decide(parse(ask("Is it so?"))) == (Relevant.UNKNOWN, "none")
