"""Configured rules: which modality ought to decide, by the model asked and the words of the question.

A rules file is TOML; the first rule that fits a request decides:

    [[rule]]
    relevant = "text"          # image, text or both
    model = "llava-*"          # a shell pattern; any model where it is left out
    question = "invoice|total" # a regular expression searched in the question, case aside; any where left out
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from modint_guard.errors import ConfigError
from modint_guard.types import Relevant

_MAX_QUESTION_CHARACTERS = 4000  # that a rule's expression is searched in


@dataclass(frozen=True, slots=True)
class RelevanceRule:
    """One rule. Raises ConfigError for an expression that does not compile or a modality that is none."""

    relevant: Relevant
    model: str = "*"
    question: str = ""

    def __post_init__(self) -> None:
        if self.relevant not in (Relevant.IMAGE, Relevant.TEXT, Relevant.BOTH):
            raise ConfigError(f"relevant is {str(self.relevant)[:40]!r}: it must be image, text or both.")
        check_question(self.question)


def check_question(expression: str) -> None:
    """Raises ConfigError where it does not compile."""
    try:
        re.compile(expression)
    except re.error as exc:
        raise ConfigError(f"question {expression[:80]!r} is no regular expression: {exc}.") from exc


def fits(pattern: str, expression: str, model: str, question: str) -> bool:
    """Whether a rule with this model pattern and question expression is for such a request."""
    shown = question[:_MAX_QUESTION_CHARACTERS]
    return fnmatchcase(model, pattern) and bool(re.search(expression, shown, re.IGNORECASE))


def by_configured_rules(rules: Iterable[RelevanceRule], model: str, question: str) -> Relevant | None:
    """What the first rule that fits says; None where none does."""
    fitting = (rule.relevant for rule in rules if fits(rule.model, rule.question, model, question))
    return next(fitting, None)


def read_rules(path: Path) -> tuple[RelevanceRule, ...]:
    """The rules of a file, in order. Raises ConfigError naming file and rule."""
    return tuple(_rule(path, number, entry) for number, entry in enumerate(read_tables(path, "rule"), 1))


def read_tables(path: Path, name: str) -> list[Any]:
    """The `[[name]]` tables of a TOML file that holds nothing else. Raises ConfigError naming the file."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{path} cannot be read ({type(exc).__name__}): name a readable TOML file."
        ) from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is no TOML: {exc}.") from exc
    held = document.get(name)
    if set(document) != {name} or not isinstance(held, list):
        raise ConfigError(f"{path} must hold [[{name}]] tables and nothing else.")
    return held


def _rule(path: Path, number: int, entry: Any) -> RelevanceRule:
    known = [field.name for field in fields(RelevanceRule)]
    where = f"{path}, rule {number}"
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise ConfigError(f"{where}: every value must be a string.")
    if unknown := [key for key in entry if key not in known]:
        raise ConfigError(f"{where}: {unknown[0][:40]!r} is no key; known: {', '.join(known)}.")
    said = entry.pop("relevant", "")
    try:
        if said not in ("image", "text", "both"):
            raise ConfigError(f"relevant is {said[:40]!r}: it must be image, text or both.")
        return RelevanceRule(relevant=Relevant(said), **entry)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc
