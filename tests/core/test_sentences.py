"""The sentences of a text, and the options that a question lists."""

import pytest

from modint_guard.chat.option_block import inline_options
from modint_guard.chat.sentences import options_in, sentences_in


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It is red. It is round.", ["It is red.", "It is round."]),
        ("Dr. Smith waved. It weighs 3.5 kg.", ["Dr. Smith waved.", "It weighs 3.5 kg."]),
        ("Es azul. ¿De qué color es?", ["Es azul.", "¿De qué color es?"]),
        ("图片显示一个球。球是什么颜色？", ["图片显示一个球。", "球是什么颜色？"]),
        ("गेंद नीली है। रंग क्या है?", ["गेंद नीली है।", "रंग क्या है?"]),
        ("one\n\ntwo", ["one", "two"]),
    ],
)
def test_sentences_end_at_full_stops_of_many_scripts_and_at_lines(text: str, sentences: list[str]) -> None:
    assert [text[a:b] for a, b in sentences_in(text)] == sentences


@pytest.mark.parametrize(
    "block",
    [
        "A. red\nB. blue",
        "(A) red (B) blue",
        "A. red B. blue",
        "Options:\nA. red\nB. blue",
        "- A. red\n- B. blue",
        "A.red\nB.blue",
        "**A.** red\n**B.** blue",
        "A - red\nB - blue",
        "Option A: red\nOption B: blue",
        "A、red B、blue",
        "（A）red（B）blue",
        "选项：\nA. red\nB. blue",
    ],
)
def test_lettered_options_are_found_in_many_styles(block: str) -> None:
    text = f"The ball is blue.\nWhat colour is it?\n{block}"
    options = options_in(text)
    assert options is not None and text[options.start : options.end] == block
    assert {option.label: option.text for option in options.options} == {"A": "red", "B": "blue"}


@pytest.mark.parametrize(
    "block", ["- red\n- light blue", "* red\n* light blue", "Options:\n- red\n- light blue"]
)
def test_bullets_under_a_question_are_options_and_are_their_own_labels(block: str) -> None:
    options = options_in(f"What colour is it?\n{block}")
    assert options is not None and [o.label for o in options.options] == ["red", "light blue"]


@pytest.mark.parametrize(
    "text",
    [
        "Facts:\n- The ball is blue.\n- It is round.\n\nWhat colour is it?",
        "The U.S. won. A.B. lost. What ran?",
        "Weights:\n1.5 kg\n2.5 kg\nHow many?",
        "Is 1. 2. or 3. right?",
        "Plan A. works. Is it good?",
    ],
)
def test_facts_abbreviations_and_decimals_are_no_options(text: str) -> None:
    assert options_in(text) is None


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What is it? Answer with one of: red, blue or light green.", ["red", "blue", "light green"]),
        ("What is it? Choose from: red | blue", ["red", "blue"]),
        ("Is it red? (yes/no)", ["yes", "no"]),
        ("Is it red? Answer yes or no.", ["yes", "no"]),
        ("What is it? Answer: a cat, a dog", []),
        ("Is it red or blue?", []),
    ],
)
def test_options_in_a_sentence_are_found_where_it_announces_them(question: str, options: list[str]) -> None:
    assert [option.label for option in inline_options(question)] == options


@pytest.mark.parametrize(
    "piece", ["Is it? ", "A. ", "A. B. ", "1. ", '."', "( ", "Mr. ", "- a\n", "。", "A、"]
)
def test_a_long_hostile_text_is_cut_all_the_same(piece: str) -> None:
    text = piece * (60_000 // len(piece))
    assert all(a < b for a, b in sentences_in(text))
    options_in(text)
