"""Configured rules of relevance, and what the model itself says."""

from pathlib import Path

import pytest

from modint_guard.chat.relevance import Relevance, decide
from modint_guard.chat.relevance_rules import RelevanceRule, by_configured_rules, read_rules
from modint_guard.chat.request import parse
from modint_guard.errors import ConfigError
from modint_guard.judging.self_ask import by_self_ask
from modint_guard.types import ModintOptions, Relevant, Reply
from tests.core.fakes import ask, reply

RULES = (
    RelevanceRule(Relevant.TEXT, model="llava-*", question=r"invoice|\btotal\b"),
    RelevanceRule(Relevant.BOTH, question="compare"),
)


@pytest.mark.parametrize(
    ("model", "question", "relevant"),
    [
        ("llava-7b", "What is the TOTAL?", "text"),
        ("llava-7b", "Compare the invoice.", "text"),  # the first that fits
        ("qwen", "Compare the total.", "both"),
        ("qwen", "What is the total?", None),
        ("llava-7b", "What is it?", None),
    ],
)
def test_the_first_rule_that_fits_decides(model: str, question: str, relevant: str | None) -> None:
    assert by_configured_rules(RULES, model, question) == relevant


def test_a_configured_rule_comes_after_the_request_and_before_any_guess() -> None:
    rules = (RelevanceRule(Relevant.BOTH),)
    chat = parse(ask("What animal is in this picture?"))
    assert decide(chat, rules=rules) == Relevance(Relevant.BOTH, "route")
    assert decide(chat) == Relevance(Relevant.IMAGE, "rules")
    assert decide(chat, ModintOptions(relevant=Relevant.IMAGE), rules) == Relevance(Relevant.IMAGE, "request")


def test_a_file_of_rules_is_read_in_order(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(
        '[[rule]]\nrelevant = "image"\nmodel = "a*"\n[[rule]]\nrelevant = "text"\nquestion = "sum"\n'
    )
    assert read_rules(file) == (
        RelevanceRule(Relevant.IMAGE, model="a*"),
        RelevanceRule(Relevant.TEXT, question="sum"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule", "is not valid TOML"),
        ('relevant = "image"', "must hold \\[\\[rule\\]\\] tables and nothing else"),
        ('[[rule]]\nrelevant = "sound"', "rule 1: relevant is 'sound': it must be image, text or both"),
        ('[[rule]]\nmodel = "a"', "rule 1: relevant is ''"),
        (
            '[[rule]]\nrelevant = "image"\nroute = "a"',
            "rule 1: 'route' is not a key here; known: relevant, model, question",
        ),
        (
            '[[rule]]\nrelevant = "image"\n[[rule]]\nrelevant = "text"\nquestion = "("',
            "rule 2: question '\\('",
        ),
        ("[[rule]]\nrelevant = 3", "rule 1: every value must be a string"),
    ],
)
def test_a_bad_file_of_rules_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_rules(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rules(tmp_path / "none.toml")


def test_unknown_is_no_rule() -> None:
    with pytest.raises(ConfigError, match="must be image, text or both"):
        RelevanceRule(Relevant.UNKNOWN)


@pytest.mark.parametrize(
    ("words", "relevant"),
    [
        ({"yes": 0.9, "no": 0.1}, "image"),
        ({" Yes": 0.5, "yes": 0.4, "No": 0.05}, "image"),
        ({"no": 0.95}, "text"),
        ({"yes": 0.6, "no": 0.4}, "unknown"),
        ({"yes": 0.3, "maybe": 0.7}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_models_own_word_counts_where_it_is_sure(words: dict[str, float], relevant: str) -> None:
    assert by_self_ask(reply("yes", **words), 0.8) == relevant
    assert by_self_ask(Reply("yes", "stop", None, None), 0.8) is Relevant.UNKNOWN
