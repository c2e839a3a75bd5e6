"""The rank that an adapter's configuration gives each module, by PEFT's rule of regular expressions.

A regular expression can take longer than anyone waits, so the expressions of a stranger are matched in a
process that is ended after `MATCH_S`:

    python -m modint_server.adapters.rank_pattern < question.json

The question: {"patterns": [...], "modules": [...]}. The answer: {"first": [the number of the first pattern
that matches each module, or null]}, or {"problem": sentence}.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from modint_guard.errors import AdapterError
from modint_server.adapters.files import shown

MATCH_S = 5.0
MAX_PLAIN = 64  # names of modules that are matched without a process
_PLAIN = re.compile(r"(?:[\w-]|\\?\.){1,200}")


def main() -> None:
    question = json.load(sys.stdin)
    try:
        print(json.dumps({"first": _first_matches(question["patterns"], question["modules"])}))
    except (re.error, RecursionError, OverflowError) as exc:
        print(json.dumps({"problem": f"is no regular expression ({exc})"}))


def patterns_of(config: dict[str, Any]) -> dict[str, Any]:
    """`rank_pattern`: expression -> rank, unchecked; empty if it is missing or no object."""
    patterns = config.get("rank_pattern")
    return patterns if isinstance(patterns, dict) else {}


def configured_ranks(config: dict[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """The rank of each module as the configuration has it, unchecked.

    Raises AdapterError if an expression cannot be read, or if matching takes longer than `MATCH_S`.
    """
    patterns = patterns_of(config)
    is_plain = len(patterns) <= MAX_PLAIN and all(map(_PLAIN.fullmatch, patterns))
    first = (_first_matches if is_plain else _asked)([*patterns], modules)
    ranks = [*patterns.values()]
    return {
        module: config.get("r") if number is None else ranks[number]
        for module, number in zip(modules, first, strict=True)
    }


def _first_matches(patterns: Sequence[str], modules: Sequence[str]) -> list[int | None]:
    rules = [re.compile(rf"(.*\.)?({pattern})$") for pattern in patterns]  # PEFT's rule, and vLLM's
    return [
        next((number for number, rule in enumerate(rules) if rule.match(module)), None) for module in modules
    ]


def _asked(patterns: Sequence[str], modules: Sequence[str]) -> list[int | None]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "modint_server.adapters.rank_pattern"],
            input=json.dumps({"patterns": [*patterns], "modules": [*modules]}),
            capture_output=True,
            text=True,
            timeout=MATCH_S,
            check=True,
        )
        answer = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        answer = {"problem": f"could not be matched within {MATCH_S:g} s"}
    if "problem" in answer:
        raise AdapterError(
            f"rank_pattern {shown([*patterns])} {answer['problem'][:200]}: write the names of modules"
        )
    first: list[int | None] = answer["first"]
    return first


if __name__ == "__main__":
    main()
