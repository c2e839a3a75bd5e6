"""Policies: what is done about a flagged answer, and which rungs the ladder tries for which kind of answer.

Which rungs are tried, how probable an answer must be and how strong a contrast is were fitted on a validation
split (`fitted`).

A policy file is TOML; the first policy that matches a request decides, but a `modint.action` in the request
replaces its action:

    [[policy]]
    action = "ladder"        # annotate, neutralise, escalate, debias, rerank, abstain or ladder
    model = "llava-*"        # a shell pattern; any model if left out
    question = "how many"    # a regular expression searched in the question, ignoring case; any if left out
    order = ["neutralise"]   # the ladder's rungs, in place of those of the table
    otherwise = "abstain"    # if no rung settles the answer; "original" serves the flagged answer
    unscored = "abstain"     # if there is no verdict; "original" serves the answer all the same
    stream = "release"       # stream at once and correct in the finish chunk; "buffer" holds until judged
    parts = "leave_out"      # abstain leaves out the flagged claims or JSON values alone; "whole": everything
    abstain_as = "error"     # a 422 envelope; "content_filter" answers 200 with that finish_reason
    robust = "robust-lora"   # the adapter that `escalate` asks
    max_tokens = 8192        # the most that all rungs of a request may cost, prompts included
    deadline_s = 10.0        # the most time that they may take
    trust_guess = true       # correct answers even if the relevant modality was only guessed
    early_stop = false       # ask every cell of every request, even those that cannot change what is served
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from modint_guard.chat.rule_files import check_expression, check_keys, matches, read_rule_file
from modint_guard.errors import ConfigError
from modint_guard.mitigation import fitted
from modint_guard.report import Report
from modint_guard.types import (
    ACTIONS,
    ANNOTATE,
    DEBIAS,
    ESCALATE,
    LADDER,
    NAMED_SOURCES,
    NEUTRALISE,
    RERANK,
    RUNGS,
    Cause,
    Relevant,
)

Form = Literal["options", "word", "free"]
FORMS: tuple[Form, ...] = ("options", "word", "free")

_WITHOUT_THE_OTHER = (NEUTRALISE, ESCALATE)
Table = Mapping[tuple[Cause, Relevant], Mapping[Form, tuple[str, ...]]]
# The rungs by cause, relevant modality and form of the answer, in the order in which they are tried. Chosen
# by reasoning: the answer of the relevant modality alone is mostly known from the cells already, so it comes
# first; the robust adapter sees the whole input but costs an answer and its probes; contrasts come last. If
# the answer came from the prior, leaving out the other modality changes nothing. If it is not known which
# modality is relevant, none may be left out and no answer is known to be better.
REASONED: Table = {
    (Cause.TEXT, Relevant.IMAGE): {
        "options": (*_WITHOUT_THE_OTHER, DEBIAS),
        "word": _WITHOUT_THE_OTHER,
        "free": (*_WITHOUT_THE_OTHER, RERANK),
    },
    (Cause.IMAGE, Relevant.TEXT): {
        "options": (*_WITHOUT_THE_OTHER, DEBIAS),
        "word": _WITHOUT_THE_OTHER,
        "free": (*_WITHOUT_THE_OTHER, RERANK),
    },
    (Cause.PRIOR, Relevant.IMAGE): dict.fromkeys(FORMS, (ESCALATE,)),
    (Cause.PRIOR, Relevant.TEXT): dict.fromkeys(FORMS, (ESCALATE,)),
    (Cause.PRIOR, Relevant.BOTH): dict.fromkeys(FORMS, (ESCALATE,)),
    (Cause.CONFLICT, Relevant.UNKNOWN): dict.fromkeys(FORMS, ()),
}


def table_of(orders: Mapping[tuple[str, str, str], tuple[str, ...]]) -> Table:
    """The table of rungs: the fitted orders, and those of REASONED for kinds of answers that have none.

    orders: the rungs by (cause, relevant modality, form of the answer), as in `fitted.ORDERS`.
    """
    return {
        (cause, relevant): {form: orders.get((cause, relevant, form), row[form]) for form in FORMS}
        for (cause, relevant), row in REASONED.items()
    }


TABLE = table_of(fitted.ORDERS)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is done about a flagged answer to requests that match `model` and `question`.

    accept_at: the least confidence, in [0, 1], at which the relevant modality's own answer is served.
    debias_lambda: the weight, 0 or more, of what the irrelevant modality alone says. The other fields are
    explained at the top of this file. Raises ConfigError for a value out of range.
    """

    action: str = ANNOTATE
    model: str = "*"
    question: str = ""
    order: tuple[str, ...] = ()
    otherwise: Literal["original", "abstain"] = "original"
    unscored: Literal["original", "abstain"] = "original"
    stream: Literal["buffer", "release"] = "buffer"
    parts: Literal["whole", "leave_out"] = "whole"
    abstain_as: Literal["content_filter", "error"] = "content_filter"
    robust: str = "robust-lora"
    max_tokens: int = 8192
    deadline_s: float = 10.0
    accept_at: float = fitted.ACCEPT_AT
    debias_lambda: float = fitted.DEBIAS_LAMBDA
    candidates: int = 4  # how many answers `rerank` compares, the original among them
    early_stop: bool = True
    trust_guess: bool = False

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} is {str(getattr(self, name))[:40]!r}: it must be one of {', '.join(known)}."
                )
        if unknown := [rung for rung in self.order if rung not in RUNGS]:
            raise ConfigError(f"order names {unknown[0][:40]!r}: rungs are {', '.join(RUNGS)}.")
        if len(set(self.order)) < len(self.order):
            raise ConfigError("order names a rung twice: each is tried once.")
        if self.order and self.action != LADDER:
            raise ConfigError(f"order belongs to the action ladder, not to {self.action}.")
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: it must lie between {least:g} and {most:g}."
                )
        check_expression(self.question)


_CHOICES: dict[str, tuple[str, ...]] = {
    "action": ACTIONS,
    "otherwise": ("original", "abstain"),
    "unscored": ("original", "abstain"),
    "stream": ("buffer", "release"),
    "parts": ("whole", "leave_out"),
    "abstain_as": ("content_filter", "error"),
}
_RANGES = {
    "max_tokens": (0, 10_000_000),
    "deadline_s": (0.001, 600.0),
    "accept_at": (0.0, 1.0),
    "debias_lambda": (0.0, 10.0),
    "candidates": (2, 4),
}


def policy_for(policies: Iterable[Policy], model: str, question: str, action: str | None) -> Policy:
    """The first policy that matches; `annotate` if none does. An `action` that the request itself asked for
    replaces that of the policy, and its order.
    """
    matching = (one for one in policies if matches(one.model, one.question, model, question))
    policy = next(matching, Policy())
    if action is None or action == policy.action:
        return policy
    return replace(policy, action=action, order=())


def rungs_of(policy: Policy, cause: Cause | None, relevant: Relevant, form: Form) -> tuple[str, ...]:
    """The rungs to try, in order. None for `annotate`, and none without a cause: nothing is flagged."""
    if policy.action == ANNOTATE or cause is None:
        return ()
    if policy.action != LADDER:
        return (policy.action,)
    return policy.order or TABLE.get((cause, relevant), {}).get(form, ())


def may_replace(policy: Policy, report: Report) -> bool:
    """Whether the policy may serve another answer at all. If neither the client nor a route named the
    relevant modality, leaving out the other one could remove what the question needs.
    """
    return policy.trust_guess or report.relevant_source in NAMED_SOURCES


def abstention(report: Report) -> str:
    """The text that is served in place of an answer: it says what each modality alone would have answered."""
    image, text = report.image_only, report.text_only
    return (
        "No answer is given: it would rest on the wrong part of the input. "
        f"The picture alone gives {_quoted(image)}, the text alone gives {_quoted(text)}."
    )


def _quoted(answer: str | None) -> str:
    return f'"{answer}"' if answer else "no answer"


def read_policies(path: Path) -> tuple[Policy, ...]:
    """The policies of a file, in order. Raises ConfigError naming the file and the number of the policy."""
    return read_rule_file(path, "policy", _policy_of)


def _policy_of(table: Mapping[str, Any]) -> Policy:
    types = {field.name: type(field.default) for field in fields(Policy)}
    check_keys(table, types)
    return Policy(**{key: _typed(key, value, types[key]) for key, value in table.items()})


def _typed(key: str, value: Any, wanted: type) -> Any:
    """The value as the field's type. Raises ConfigError if it is of another type."""
    if wanted is tuple:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return tuple(value)
        raise ConfigError(f"{key} must be a list of strings.")
    numbers = (int, float) if wanted is float else (wanted,)
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, numbers):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{key} must be {names[wanted]}.")
    return value
