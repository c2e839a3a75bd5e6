"""Where a context begins and ends: what is left without it must be a sentence."""

import numpy as np
import pytest

from modint_guard.chat.edges import with_whole_clauses
from modint_guard.chat.tokens import tokens_of


def cut(text: str, *contexts: str) -> str:
    """The tokens that remain of a text without its contexts, after their edges have moved."""
    tokens = tokens_of(text, [0])
    flags = np.zeros(len(tokens.starts), bool)
    for context in contexts:
        start = text.index(context)
        flags |= (tokens.starts >= start) & (tokens.ends <= start + len(context))
    kept = ~with_whole_clauses(flags, tokens, text)
    return " ".join(text[a:b] for a, b in zip(tokens.starts[kept], tokens.ends[kept], strict=True))


@pytest.mark.parametrize(
    ("text", "context", "left"),
    [
        ("If Tom has 3 apples, how many has he?", "Tom has 3 apples", "how many has he ?"),
        ("Given that it is a cat, what is it?", "it is a cat", "what is it ?"),
        ("Given that it is a cat, what is it?", "it is a cat,", "what is it ?"),
        ("Wenn Tom 3 Äpfel hat, wie viele hat er?", "Tom 3 Äpfel hat", "wie viele hat er ?"),
        ("What did she bring if the note says a torch?", "the note says a torch", "What did she bring ?"),
        ("Which team, as the caption says Arsenal, is it?", "the caption says Arsenal", "Which team is it ?"),
        ("What is it, it looks like a cat?", "it looks like a cat", "What is it ?"),
    ],
)
def test_a_clause_takes_its_conjunction_and_its_commas_along(text: str, context: str, left: str) -> None:
    assert cut(text, context) == left


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("Is it true that the ball is blue in here?", "the ball is blue"),  # the clause goes on
        ("What colour is the ball: red", "red"),
        ("How does the cat that Ann calls grey look?", "Ann calls grey"),
    ],
)
def test_nothing_else_moves(text: str, context: str) -> None:
    tokens = tokens_of(text.replace(context, " "), [0])
    assert cut(text, context) == " ".join(
        text.replace(context, " ")[a:b] for a, b in zip(tokens.starts, tokens.ends, strict=True)
    )


def test_both_tags_go_with_what_they_hold() -> None:
    text = "<note id=3>\nThe ball is blue.\n</note>\nWhat is it?"
    assert cut(text, "The ball is blue.") == "What is it ?"
    assert cut(text, "<note id=3>\nThe ball is blue.") == "What is it ?"


def test_tags_stay_with_a_question_that_they_hold() -> None:
    text = "It is blue. <question>What is it?</question>"
    assert cut(text, "It is blue.", "</question>") == "< question > What is it ? < / question >"


def test_tags_that_hold_both_stay_as_they_are() -> None:
    text = "<user>It is blue. What is it?</user>"
    assert cut(text, "It is blue.") == "< user > What is it ? < / user >"


def test_tags_that_nothing_closes_stay_as_they_are() -> None:
    assert cut("<a> " * 5000, "<a>").count("a") == 4999


def test_tags_of_two_messages_are_no_pair() -> None:
    text = "<note>\nIt is blue.\n</note> What is it?"
    tokens = tokens_of(text, [0, text.index("</note>")])
    flags = np.zeros(len(tokens.starts), bool)
    flags[(tokens.starts >= text.index("It")) & (tokens.ends <= text.index("</note>"))] = True
    assert (with_whole_clauses(flags, tokens, text) == flags).all()
