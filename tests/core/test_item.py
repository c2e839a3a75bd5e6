"""Items: what a model reads, what it must answer, and which items cannot be."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.data.item import LETTERS, answer_key, choice_of, is_right, prompt, question_text, reply_for
from tests.core.items import DIGIT, LETTERED

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)


def test_the_one_word_form_asks_the_bare_question() -> None:
    assert prompt(DIGIT) == "What digit is shown?"


def test_the_lettered_form_lists_its_options_a_line_each() -> None:
    assert question_text(LETTERED) == "What digit is shown?\nA. 5\nB. 7\nC. 3\nD. 1"


def test_the_context_stands_above_the_question() -> None:
    captioned = LETTERED.replace(context="Caption: the digit 7.")
    assert prompt(captioned) == "Caption: the digit 7.\nWhat digit is shown?\nA. 5\nB. 7\nC. 3\nD. 1"


def test_a_choice_is_answered_by_its_word_or_by_its_letter() -> None:
    assert reply_for(DIGIT, "7") == "7"
    assert [reply_for(LETTERED, choice) for choice in LETTERED.choices] == ["A", "B", "C", "D"]


@pytest.mark.parametrize("text", ["3", " 3", "3.", " 3 .\n"])
def test_blanks_and_a_final_full_stop_do_not_make_an_answer_wrong(text: str) -> None:
    assert is_right(DIGIT, text)


@pytest.mark.parametrize("text", ["", ".", "7", "33", "3 or 7", "not 3", "The answer is 7", "3 4", "3: 7"])
def test_anything_else_than_the_truth_is_wrong(text: str) -> None:
    assert not is_right(DIGIT, text)


def test_a_lettered_item_is_answered_by_the_letter_and_not_by_the_word() -> None:
    assert is_right(LETTERED, "C") and is_right(LETTERED, "c.")
    assert not is_right(LETTERED, "3")


def test_an_article_is_no_letter() -> None:
    first = LETTERED.replace(choices=("3", "7", "5", "1"))
    assert not is_right(first, "A dog. The answer is C")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("(C)", "3"),
        ("[c]", "3"),
        ("C)", "3"),
        ("C. 3", "3"),
        ("C: 3.", "3"),
        ("(C) 3", "3"),
        ("The answer is C.", "3"),
        ("The correct answer is: (C) 3", "3"),
        ("A dog. The answer is C", "3"),
        ("I thought A, the answer is B. No: the answer is C.", "3"),
        ("Answer: **D**", "1"),
        ("C. 7", None),  # the text of another
        ("C and D", None),
        ("C, D", None),
        ("A dog", None),
        ("The answer is a dog", None),
        ("The answer is unclear", None),
        ("E", None),
    ],
)
def test_a_reply_in_a_sentence_is_read_by_the_options(text: str, choice: str | None) -> None:
    assert choice_of(LETTERED, text) == choice
    assert is_right(LETTERED, text) == (choice == "3")


@pytest.mark.parametrize("text", ["The answer is 3", "Answer: 3.", "the answer is **3**"])
def test_a_word_in_a_sentence_that_says_it_answers_is_read(text: str) -> None:
    assert is_right(DIGIT, text)


def test_a_reply_is_read_as_a_choice_or_as_its_own_words() -> None:
    assert choice_of(LETTERED, "c.") == "3" and choice_of(LETTERED, "A dog") is None
    assert answer_key(LETTERED, " C") == answer_key(LETTERED, "c.") == "3"
    assert answer_key(LETTERED, "A dog. ") == "a dog"


@given(st.lists(WORDS, min_size=2, max_size=8, unique=True), st.data())
def test_exactly_one_choice_is_right(choices: list[str], data: st.DataObject) -> None:
    answer, wrong = data.draw(st.permutations(choices))[:2]
    item = DIGIT.replace(
        choices=tuple(choices),
        answer=answer,
        wrong=wrong,
        form=data.draw(st.sampled_from(["word", "letter"])),
    )
    assert [choice for choice in choices if is_right(item, reply_for(item, choice))] == [answer]


def test_a_lie_that_equals_the_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="item digit-0: the lie '3' equals the truth"):
        DIGIT.replace(wrong="3")


@pytest.mark.parametrize(
    ("answer", "wrong", "lie"),
    [
        ("card", "platypus", "The picture shows a card."),
        ("Card.", "platypus", "CARD: it lies on a table"),
        ("a red bus", "a blue bus", "This is a  red\nbus."),
        ("dark red", "red", "It is dark red."),
        ("100", "200", "There are 100, I think."),
    ],
)
def test_a_lie_that_names_the_truth_alone_is_refused(answer: str, wrong: str, lie: str) -> None:
    said = re.escape(f"its lie names the truth {answer!r} and not {wrong!r}, which it is to claim: name that")
    with pytest.raises(ValueError, match=f"^item digit-0: {said} in it, or leave the text out$"):
        DIGIT.replace(form="free", choices=(), answer=answer, wrong=wrong, lie=lie)


@pytest.mark.parametrize(
    ("answer", "wrong", "lie"),
    [
        ("card", "platypus", "It is a platypus, not a card."),
        ("card", "platypus", "Two platypuses lie on a card."),
        ("red", "dark red", "It is dark red."),
        ("card", "platypus", "It lays eggs."),
        ("card", "platypus", "A discarded card-holder, a box of cards, cardboard."),
        ("100", "200", "It costs 2,100.50, 100.5 or 1000 francs."),
        ("A", "B", "A picture of something else."),
        ("no", "yes", "There is no doubt of it."),
        ("7", "3", "The digit 7."),
        ("a dog", "a cat", "The cat is not a dog."),
        ("the dog", "the cat", "A cat chases the dog."),
        ("card", "", "The picture shows a card."),
        ("", "card", "The picture shows a card."),
    ],
)
def test_a_lie_that_may_well_be_one_is_taken(answer: str, wrong: str, lie: str) -> None:
    item = DIGIT.replace(form="free", choices=(), answer=answer, wrong=wrong, lie=lie)
    assert item.lie == lie


@pytest.mark.parametrize("field", ["answer", "wrong"])
def test_an_answer_that_is_no_choice_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="must be among the choices"):
        DIGIT.replace(**{field: "9"})


@pytest.mark.parametrize("changes", [{"family": "image_heavy"}, {"form": "words"}])
def test_an_unknown_family_or_form_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes.values()))):
        DIGIT.replace(**changes)


def test_more_choices_than_letters_are_refused_in_the_lettered_form() -> None:
    nine = tuple("123456789")
    assert len(LETTERS) == 8
    DIGIT.replace(choices=nine)
    with pytest.raises(ValueError, match="at most 8 lettered choices"):
        DIGIT.replace(choices=nine, form="letter")


def test_an_item_without_a_label_is_never_right() -> None:
    unlabelled = DIGIT.replace(answer="", wrong="")
    assert not unlabelled.labelled and DIGIT.labelled
    assert not any(is_right(unlabelled, text) for text in ("", ".", "3"))


def test_a_free_answer_is_right_when_it_says_the_same_words() -> None:
    free = DIGIT.replace(form="free", choices=(), answer="A red bus.", wrong="")
    assert is_right(free, "a red bus") and is_right(free, " A red bus. ")
    assert not is_right(free, "a blue bus")
    assert reply_for(free, free.answer) == "A red bus."


def test_a_question_that_lists_its_options_is_asked_as_it_is() -> None:
    written = LETTERED.replace(
        question="Which?\n(a) 5\n(b) 3", choices=("5", "3"), answer="3", wrong="5", replies=("(a)", "(b)")
    )
    assert question_text(written) == "Which?\n(a) 5\n(b) 3"
    assert reply_for(written, "3") == "(b)" and is_right(written, "(b)")
    assert not is_right(written, "B")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"form": "free"}, "does not go with"),
        ({"choices": ()}, "does not go with"),
        ({"choices": ("3", "7", "3")}, "a choice appears twice"),
        ({"replies": ("A", "A")}, "do not tell its choices apart"),
        ({"replies": ("A",)}, "do not tell its choices apart"),
        ({"form": "free", "choices": (), "answer": "Red", "wrong": "red"}, "equals the truth"),
        ({"form": "free", "choices": (), "answer": "Red.", "wrong": " red "}, "the lie ' red ' equals the"),
        ({"choices": ("red", "Red ."), "answer": "red", "wrong": "Red ."}, "equals the truth"),
    ],
)
def test_what_an_item_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DIGIT.replace(**changes)
