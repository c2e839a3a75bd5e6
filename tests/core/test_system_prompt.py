"""What a system prompt states, and what of it is a role that must stay."""

import pytest

from modint_guard.chat.system_prompt import facts_in

ROLE = "You are a helpful assistant. The assistant is honest. Answer briefly."


def facts(text: str) -> list[str]:
    return [text[a:b] for a, b in facts_in(text)]


@pytest.mark.parametrize(
    "fact",
    [
        "The picture shows a blue ball.",
        "This is a photo of a blue ball.",
        "In the image there is a blue ball.",
        "Context: the ball is blue.",
        "Image caption: a blue ball.",
        "Known facts: the ball is blue. It is round.",
        "<context>The ball is blue. Is it? Yes.</context>",
        "<facts>\nThe ball is blue.\n</facts>",
        "Background:\nThe ball is blue.\nIt is round.",
        "上下文：球是蓝色的。",
    ],
)
def test_facts_are_found_and_the_role_stays(fact: str) -> None:
    assert facts(f"{ROLE}\n\n{fact}\n\nNever be rude.") == [fact]
    assert facts(fact) == [fact]


@pytest.mark.parametrize(
    "text",
    [
        ROLE,
        "",
        "You look at pictures and answer questions about them.",
        "If the picture shows a person, say so.",
        "Note: always answer in English.",
        "Notes: you must reply with one word.",
        "<context>never closed",
        "Describe the image in detail.",
    ],
)
def test_what_may_be_a_role_is_never_taken_away(text: str) -> None:
    assert facts(text) == []


@pytest.mark.parametrize(
    "fact",
    [
        "The file is called cat.png.",
        'The label under it says "cat".',
        "Note from the archive: the image depicts a cat.",
        "From the catalogue: a cat, drawn by hand.",
        "You are looking at a cat.",
        "The user has uploaded a picture of a cat.",
    ],
)
def test_what_is_noted_of_the_picture_is_a_fact(fact: str) -> None:
    text = f"You are a helpful guide. {fact} Be brief."
    assert [text[a:b] for a, b in facts_in(text)] == [fact]


@pytest.mark.parametrize(
    "role",
    [
        "You are a radiologist.",
        "The user will be shown a picture.",
        "Labels must be in English.",
        "Always give the file name.",
        "The caption should be short.",
        "In your answer: be brief.",
        "Users may upload pictures.",
    ],
)
def test_what_a_role_or_a_rule_says_is_no_fact(role: str) -> None:
    assert facts_in(role) == ()
