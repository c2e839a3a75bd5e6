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
        ("According to the passage, who left first?", "text"),
        ("In the note, what does Ann buy?", "text"),
        ("What does the article say about rain?", "text"),
        ("What is the sum of 3 and 4?", "text"),
        ("Does the picture match the description?", "both"),
        ("According to the text, is the dog in the picture old?", "both"),
        ("What is the digit in the picture plus two?", "both"),
        ("Who wrote Hamlet?", "unknown"),
        ("Is it so?", "unknown"),
    ],
)
def test_the_question_names_the_modality(question: str, relevant: str) -> None:
    assert by_lexical_rules(question, None) == relevant


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
