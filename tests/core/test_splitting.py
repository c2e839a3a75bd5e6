"""What is context in a request and what is question, on small real requests in several languages."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.linear import shipped_reader
from modint_guard.chat.rebuild import rebuild
from modint_guard.chat.request import parse
from modint_guard.chat.splitting import MAX_TEXT_CHARACTERS, Said, read_units
from modint_guard.chat.units import units_of
from modint_guard.types import JSON
from tests.core.fakes import ask, image_part, text_part

QUESTION = "What colour is the ball in the picture?"


@pytest.mark.parametrize(
    ("context", "question"),
    [
        ("The caption says that the ball is blue.", QUESTION),
        ("Bildunterschrift: drei Katzen auf einem Sofa.", "Wie viele Tiere sind auf dem Foto zu sehen?"),
        ("Légende : deux chevaux devant une ferme.", "Combien d'animaux voit-on sur la photo ?"),
        ("El pie de foto dice: un gato negro.", "¿De qué color es el gato de la imagen?"),
        ("图片说明：一只黑色的猫。", "图中的动物是什么颜色？"),
        ("Подпись: чёрная кошка на диване.", "Какого цвета кошка на фото?"),
    ],
)
def test_a_caption_is_context_before_the_question_and_as_a_part(context: str, question: str) -> None:
    for body in (ask(f"{context}\n{question}"), ask(context, question)):
        chat = parse(body)
        assert (chat.context, chat.question) == (context, question)
        assert rebuild(chat, context="")["messages"] == ask(question)["messages"]


@pytest.mark.parametrize(
    "question",
    [
        "total?",
        "What is the total on this receipt? Just the number, please.",
        "Welche Nummer steht auf dem Schild? Nur die Zahl, bitte.",
        "¿Qué dice el cartel?",
        "この写真には何人写っていますか?",
        "Describe the picture in one sentence. No markdown fences!",
        "Which city is marked in red?\nA. Lyon\nB. Paris\nAnswer with the letter only.",
    ],
)
def test_a_question_with_its_options_and_instructions_is_no_context(question: str) -> None:
    chat = parse(ask(question))
    assert (chat.context, chat.question) == (None, question)


def test_context_stands_in_earlier_turns_and_system_prompts_too() -> None:
    body: JSON = {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant. Caption: a blue ball on a red mat."},
            {"role": "user", "content": "My colleague says that the ball is blue."},
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": [image_part(), text_part(QUESTION)]},
        ]
    }
    chat = parse(body)
    assert {span.message for span in chat.context_spans} == {0, 1}
    assert chat.question == QUESTION
    assert rebuild(chat, context="")["messages"][0]["content"] == "You are a helpful assistant."


@pytest.mark.parametrize("pictured_first", [True, False])
def test_a_picture_and_its_question_may_stand_in_two_messages(pictured_first: bool) -> None:
    asked: JSON = {"role": "user", "content": [text_part(QUESTION)]}
    pictured: JSON = {"role": "user", "content": [image_part(), text_part("The caption says a blue ball.")]}
    messages = [pictured, asked] if pictured_first else [asked, pictured]
    chat = parse({"messages": messages})
    assert (chat.question, chat.turn) == (QUESTION, int(pictured_first))
    assert chat.context == "The caption says a blue ball."


def test_an_earlier_question_that_was_answered_is_not_the_question() -> None:
    body: JSON = {
        "messages": [
            {"role": "user", "content": [image_part(), text_part("What animal is it?")]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": QUESTION},
        ]
    }
    assert parse(body).question == QUESTION


def test_labels_of_pictures_belong_to_the_question() -> None:
    chat = parse(ask("Image 1:", QUESTION))
    assert (chat.context, chat.question) == (None, f"Image 1:\n{QUESTION}")


def test_units_are_clauses_lines_brackets_and_words_that_often_begin_one() -> None:
    text = "my nephew says a rabbit (I doubt it), so\nwhat is it"
    units = units_of(text, frozenset({"what", "so"}))
    assert [text[u.start : u.end] for u in units] == [
        "my nephew says a rabbit",
        "(I doubt it),",
        "so",
        "what is it",
    ]
    assert [unit.sentence for unit in units] == [0, 0, 0, 1]


@given(st.text(max_size=200))
def test_question_and_context_share_no_character_and_something_is_left_to_answer(text: str) -> None:
    chat = parse({"messages": [{"role": "user", "content": text}]})
    pieces = sorted((span.start, span.end) for span in (*chat.context_spans, *chat.question_spans))
    assert all(a < b for a, b in pieces)
    assert all(first[1] <= second[0] for first, second in pairwise(pieces))
    covered = {i for a, b in pieces for i in range(a, b)}
    assert all(text[i].isspace() for i in range(len(text)) if i not in covered)
    assert bool(chat.question_spans) == bool(text.strip())


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_option_is_ever_context(before: str, after: str) -> None:
    chat = parse(ask(f"{before}\nWhich is it?\nA. red\nB. blue\n\n{after}"))
    for option in chat.options:
        assert option.span is None or option.text in chat.question


def test_what_is_not_read_of_a_long_text_is_what_stands_before_it() -> None:
    passage = "The harbour was closed for repairs during most of the year. " * 400
    assert len(passage) > 3 * MAX_TEXT_CHARACTERS
    chat = parse(ask(f"{passage.strip()}\n\nAccording to the passage, why was the harbour closed?"))
    assert chat.context is not None and len(chat.context) > 0.9 * len(passage)
    assert "why was the harbour closed?" in chat.question


@pytest.mark.parametrize("piece", ["Is it? ", "A. ", "a\n", "(", '"', "_", "，", "what ", "\ud800", "İ"])
def test_a_megabyte_is_read_in_bounded_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    begin = time.process_time()
    units = read_units([Said(text)] * 40, shipped_reader())
    assert time.process_time() - begin < 2.0
    assert all(unit.start < unit.end <= len(text) for unit in units)


def test_a_message_without_text_has_neither() -> None:
    chat = parse({"messages": [{"role": "user", "content": [image_part()]}]})
    assert (chat.context, chat.question, chat.turn) == (None, "", 0)
