"""An answer cut into words and claims."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.words import claims_in, words_in


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The ball is blue.", ["The", "ball", "is", "blue"]),
        ("It isn't a blue-green **cup** (really!)", ["It", "isn't", "a", "blue-green", "cup", "really"]),
        ("red/blue, red|blue, red—blue", ["red", "blue"] * 3),
        ("It costs $5.20, or 1,200 € at 10:30.", ["It", "costs", "$5.20", "or", "1,200", "€", "at", "10:30"]),
        ("- a cat\n- a dog", ["a", "cat", "a", "dog"]),
        ("👍", ["👍"]),
        ("...", ["..."]),
        ("  \n", []),
        ("", []),
        ("Der Ball ist grün; él come niñas", ["Der", "Ball", "ist", "grün", "él", "come", "niñas"]),
    ],
)
def test_words_are_what_blanks_divide_without_the_punctuation_around_them(
    text: str, words: list[str]
) -> None:
    assert [text[a:b] for a, b in words_in(text)] == words


def test_scripts_without_blanks_are_cut_where_tokens_begin() -> None:
    text = "球是蓝色的。It is 青い"
    assert [text[a:b] for a, b in words_in(text, (0, 1, 2, 4, 5))] == [
        "球",
        "是",
        "蓝色",
        "的",
        "It",
        "is",
        "青い",
    ]
    assert next(text[a:b] for a, b in words_in(text)) == "球是蓝色的"


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("A red ball.", ["A red ball."]),
        ("A red ball. It lies on a table.", ["A red ball.", "It lies on a table."]),
        ("1. a cat\n2. a dog", ["1. a cat", "2. a dog"]),
        ("There is a cat, and there is a dog", ["There is a cat,", "and there is a dog"]),
        ("However, the ball is red", ["However, the ball is red"]),
        ("a red, green and blue ball", ["a red, green and blue ball"]),
        ("It is red; no", ["It is red;", "no"]),
        ("球是蓝色的，桌子是红色的。", ["球是蓝色的，", "桌子是红色的。"]),
        ("It costs 1,200 euros", ["It costs 1,200 euros"]),
        ("", []),
    ],
)
def test_claims_are_sentences_lines_and_clauses(text: str, claims: list[str]) -> None:
    assert [text[a:b] for a, b in claims_in(text)] == claims


@given(st.text(max_size=60), st.sets(st.integers(0, 60)))
def test_words_and_claims_lie_in_the_text_in_order_and_do_not_overlap(text: str, cuts: set[int]) -> None:
    for pieces in (words_in(text, cuts), claims_in(text)):
        at = 0
        for start, end in pieces:
            assert at <= start < end <= len(text) and text[start:end].strip() == text[start:end]
            at = end
    assert bool(words_in(text, cuts)) == bool(text.strip())


@given(st.text(max_size=60))
def test_every_word_begins_in_a_claim(text: str) -> None:
    claims = claims_in(text)
    assert all(any(a <= start < b for a, b in claims) for start, _ in words_in(text))
