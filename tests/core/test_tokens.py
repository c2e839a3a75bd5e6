"""How a request's texts are cut before their tokens are labelled."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.tokens import BLANK, BLANK_LINE, NEW_LINE, NO_GAP, tokens_of


def words(text: str) -> list[str]:
    tokens = tokens_of(text, [0])
    return [text[a:b] for a, b in zip(tokens.starts, tokens.ends, strict=True)]


def groups(text: str, kind: str) -> list[str]:
    tokens = tokens_of(text, [0])
    of = getattr(tokens, kind)
    return [
        text[tokens.starts[of == number][0] : tokens.ends[of == number][-1]] for number in range(of[-1] + 1)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 4.20 € at 14:30.", ["It's", "4.20", "€", "at", "14:30", "."]),
        ("see cat_2.png (x-ray)", ["see", "cat_2.png", "(", "x-ray", ")"]),
        ("球は青い。", ["球", "は", "青", "い", "。"]),
        ("図はグラフ", ["図", "は", "グラフ"]),
    ],
)
def test_a_token_is_a_word_a_number_a_run_of_one_script_or_a_mark(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is red. What is it?", ["It is red.", "What is it?"]),
        ("it is red. what is it", ["it is red.", "what is it"]),
        ("It costs 4.20 today", ["It costs 4.20 today"]),
        ('He said "no." Why?', ['He said "no."', "Why?"]),
        ("球は青い。何色？", ["球は青い。", "何色？"]),
        ("Title: Cat\nWhat is it", ["Title: Cat", "What is it"]),
    ],
)
def test_a_sentence_ends_at_its_mark_or_at_the_end_of_the_line(text: str, expected: list[str]) -> None:
    assert groups(text, "sentence") == expected


def test_a_clause_ends_at_commas_colons_brackets_and_quotation_marks() -> None:
    text = "The note says: a cat (grey), so what is it?"
    assert groups(text, "clause") == ["The note says:", "a cat", "(grey)", ",", "so what is it?"]


def test_what_stands_before_a_token_is_known_and_so_is_its_text() -> None:
    whole = "Be brief.\nIt is (red).\n\nWhat?"
    tokens = tokens_of(whole, [0, 10])
    assert tokens.gap.tolist() == [
        *(NO_GAP, BLANK, NO_GAP),
        *(NEW_LINE, BLANK, BLANK, NO_GAP, NO_GAP, NO_GAP),
        *(BLANK_LINE, NO_GAP),
    ]
    assert tokens.text.tolist() == [0] * 3 + [1] * 8


@given(st.text(min_size=1, max_size=200).filter(str.strip))
def test_tokens_leave_out_nothing_but_blanks(text: str) -> None:
    tokens = tokens_of(text, [0])
    covered = {i for a, b in zip(tokens.starts, tokens.ends, strict=True) for i in range(a, b)}
    assert all(text[i].isspace() or i in covered for i in range(len(text)))
    assert not any(text[i].isspace() for i in covered)


@pytest.mark.parametrize("piece", ["a", ".", "(", "a.", "a'", "?\n", '"', "の", "一の", "-"])
def test_the_time_grows_with_the_text_and_not_with_its_square(piece: str) -> None:
    def cost(count: int) -> float:
        text = piece * count
        begun = time.process_time()
        tokens_of(text, [0])
        return time.process_time() - begun

    cost(2_000)
    assert cost(160_000) < 40 * max(cost(10_000), 0.001)  # a square would take 256 times as long
