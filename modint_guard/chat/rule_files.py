"""Configured rules: which requests a rule is for, and the TOML files that hold rules.

Relevance rules and mitigation policies are both written this way: one table per rule, in which `model` (a
shell pattern) and `question` (a regular expression) say which requests the rule is for.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from modint_guard.errors import ConfigError

_MAX_QUESTION_CHARACTERS = 4000  # how much of a question an expression is searched in
T = TypeVar("T")


def matches(model_pattern: str, expression: str, model: str, question: str) -> bool:
    """Whether a rule with this model pattern and question expression is for a request to `model` that asks
    `question`. Case does not matter in the question.
    """
    start = question[:_MAX_QUESTION_CHARACTERS]
    return fnmatchcase(model, model_pattern) and bool(re.search(expression, start, re.IGNORECASE))


def check_expression(expression: str) -> None:
    """Raises ConfigError if a rule's `question` is not a regular expression."""
    try:
        re.compile(expression)
    except re.error as exc:
        raise ConfigError(f"question {expression[:80]!r} is not a regular expression: {exc}.") from exc


def check_keys(table: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ConfigError for a key that no rule of this kind has."""
    known = tuple(known)
    if unknown := [key for key in table if key not in known]:
        raise ConfigError(f"{unknown[0][:40]!r} is not a key here; known: {', '.join(known)}.")


def read_rule_file(path: Path, name: str, rule_of: Callable[[Mapping[str, Any]], T]) -> tuple[T, ...]:
    """The rules in the `[[name]]` tables of a TOML file that holds nothing else, in order.

    rule_of: makes a rule of one table; raises ConfigError. Raises ConfigError that names the file and, if one
    of the tables is wrong, its number from 1.
    """
    rules: list[T] = []
    for number, table in enumerate(_tables(path, name), 1):
        try:
            if not isinstance(table, dict):
                raise ConfigError("it must be a table.")
            rules.append(rule_of(table))
        except ConfigError as exc:
            raise ConfigError(f"{path}, {name} {number}: {exc}") from exc
    return tuple(rules)


def _tables(path: Path, name: str) -> list[Any]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{path} cannot be read ({type(exc).__name__}): name a readable TOML file."
        ) from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}.") from exc
    tables = document.get(name)
    if set(document) != {name} or not isinstance(tables, list):
        raise ConfigError(f"{path} must hold [[{name}]] tables and nothing else.")
    return tables
