"""Configured relevance rules: which modality ought to decide, by the model and the words of the question.

A rules file is TOML; the first rule that matches a request decides:

    [[rule]]
    relevant = "text"          # image, text or both
    model = "llava-*"          # a shell pattern; any model if left out
    question = "invoice|total" # a regular expression searched in the question, ignoring case; any if left out
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from modint_guard.chat.rule_files import check_expression, check_keys, matches, read_rule_file
from modint_guard.errors import ConfigError
from modint_guard.types import Relevant

_MODALITIES = (Relevant.IMAGE, Relevant.TEXT, Relevant.BOTH)


@dataclass(frozen=True, slots=True)
class RelevanceRule:
    """One rule: requests that match `model` and `question` ought to be decided by `relevant`.

    Raises ConfigError if `question` is not a regular expression, or if `relevant` is not image, text or both.
    """

    relevant: Relevant
    model: str = "*"
    question: str = ""

    def __post_init__(self) -> None:
        _check_modality(self.relevant)
        check_expression(self.question)


def by_configured_rules(rules: Iterable[RelevanceRule], model: str, question: str) -> Relevant | None:
    """What the first matching rule says; None if no rule matches."""
    matching = (rule.relevant for rule in rules if matches(rule.model, rule.question, model, question))
    return next(matching, None)


def read_rules(path: Path) -> tuple[RelevanceRule, ...]:
    """The rules of a file, in order. Raises ConfigError naming the file and the number of the rule."""
    return read_rule_file(path, "rule", _rule_of)


def _rule_of(table: Mapping[str, Any]) -> RelevanceRule:
    if not all(isinstance(value, str) for value in table.values()):
        raise ConfigError("every value must be a string.")
    check_keys(table, [field.name for field in fields(RelevanceRule)])
    modality = table.get("relevant", "")
    _check_modality(modality)
    return RelevanceRule(**{**table, "relevant": Relevant(modality)})


def _check_modality(name: str) -> None:
    if name not in _MODALITIES:
        raise ConfigError(f"relevant is {str(name)[:40]!r}: it must be image, text or both.")
