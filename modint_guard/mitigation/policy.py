"""Policies: what is done about a flagged answer, and which rungs the ladder tries for which kind of answer.

Which rungs, how sure and how strong a contrast must be was chosen on validation (`learnt`).

A policy file is TOML; the first policy that fits a request decides, and the request's own `modint.action`
wins over its action:

    [[policy]]
    action = "ladder"        # annotate, neutralise, escalate, debias, rerank, abstain or ladder
    model = "llava-*"        # a shell pattern; any model where it is left out
    question = "how many"    # a regular expression searched in the question, case aside; any where left out
    order = ["neutralise"]   # the ladder's rungs, in place of the table's
    otherwise = "abstain"    # where no rung settles it; "original" serves the flagged answer
    stream = "release"       # stream at once and correct in the finish chunk; "buffer" holds until judged
    abstain_as = "error"     # a 422 envelope; "content_filter" answers 200 with that finish_reason
    robust = "robust-lora"   # the adapter that `escalate` asks
    max_tokens = 8192        # that all rungs of a request may cost, prompts included
    deadline_s = 10.0        # that they may take
    trust_guess = true       # another answer also where what is relevant was guessed from the question
    early_stop = false       # ask every cell of every request; else none that could not change what is served
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from modint_guard.chat.relevance_rules import check_question, fits, read_tables
from modint_guard.errors import ConfigError
from modint_guard.mitigation import fitted as learnt
from modint_guard.types import (
    ACTIONS,
    ANNOTATE,
    DEBIAS,
    ESCALATE,
    LADDER,
    NEUTRALISE,
    RERANK,
    RUNGS,
    Cause,
    Relevant,
    RelevantSource,
    Report,
)

Form = Literal["options", "word", "free"]
FORMS: tuple[Form, ...] = ("options", "word", "free")

GUESSED_SOURCES: tuple[RelevantSource, ...] = ("rules", "self_ask")
_WITHOUT_THE_OTHER = (NEUTRALISE, ESCALATE)
Table = Mapping[tuple[Cause, Relevant], Mapping[Form, tuple[str, ...]]]
# Which rungs, in which order, by cause, relevance and form of the answer, by reasoning: the answer of the
# relevant modality alone is mostly known from the cells already, so it goes first; the robust adapter sees
# all of the input but costs an answer and its probes; contrasts go last. Where the answer came from the
# prior, taking away the other modality changes nothing. Where nobody said what is relevant, nothing is taken
# away and nobody can say which answer is better.
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


def tabled(orders: Mapping[tuple[str, str, str], tuple[str, ...]]) -> Table:
    """The table of rungs: what was learnt, and what was reasoned where nothing was."""
    return {
        (cause, relevant): {form: orders.get((cause, relevant, form), row[form]) for form in FORMS}
        for (cause, relevant), row in REASONED.items()
    }


TABLE = tabled(learnt.ORDERS)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is done about a flagged answer, for requests of this model and question.

    `accept_at` is how probable the relevant modality's own answer must be, in [0, 1], to be served;
    `debias_lambda` weighs what the irrelevant modality says alone, 0 or more. Raises ConfigError.
    """

    action: str = ANNOTATE
    model: str = "*"
    question: str = ""
    order: tuple[str, ...] = ()
    otherwise: Literal["original", "abstain"] = "original"
    stream: Literal["buffer", "release"] = "buffer"
    abstain_as: Literal["content_filter", "error"] = "content_filter"
    robust: str = "robust-lora"
    max_tokens: int = 8192
    deadline_s: float = 10.0
    accept_at: float = learnt.ACCEPT_AT
    debias_lambda: float = learnt.DEBIAS_LAMBDA
    candidates: int = 4  # that `rerank` compares, the original among them
    early_stop: bool = True  # ask no cell that could not change what is served
    trust_guess: bool = (
        False  # give another answer also where nobody named what is relevant and it was guessed
    )

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
        check_question(self.question)


_CHOICES: dict[str, tuple[str, ...]] = {
    "action": ACTIONS,
    "otherwise": ("original", "abstain"),
    "stream": ("buffer", "release"),
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
    """The first policy that fits, with the action that the request asked for; by default, `annotate`."""
    found = next((one for one in policies if fits(one.model, one.question, model, question)), Policy())
    if action is None or action == found.action:
        return found
    return replace(found, action=action, order=())


def rungs_of(policy: Policy, cause: Cause | None, relevant: Relevant, form: Form) -> tuple[str, ...]:
    """The rungs to try in order; none for `annotate` and for an answer that is not flagged."""
    if policy.action == ANNOTATE or cause is None:
        return ()
    if policy.action != LADDER:
        return (policy.action,)
    return policy.order or TABLE.get((cause, relevant), {}).get(form, ())


def may_replace(policy: Policy, report: Report) -> bool:
    """Whether another answer may be given at all: a guess at what is relevant, by lexical rules or by the
    model itself, is no ground for taking a part of the input away that somebody may have needed.
    """
    return policy.trust_guess or report.relevant_source not in GUESSED_SOURCES


def abstention(report: Report) -> str:
    """What is said in place of an answer: what either modality alone would have answered."""
    image, text = report.image_only, report.text_only
    return (
        "No answer is given: it would rest on the wrong part of the input. "
        f"The picture alone gives {_quoted(image)}, the text alone gives {_quoted(text)}."
    )


def _quoted(answer: str | None) -> str:
    return f'"{answer}"' if answer else "no answer"


def read_policies(path: Path) -> tuple[Policy, ...]:
    """The policies of a file, in order. Raises ConfigError naming file and policy."""
    return tuple(_policy(path, number, entry) for number, entry in enumerate(read_tables(path, "policy"), 1))


def _policy(path: Path, number: int, entry: Any) -> Policy:
    where = f"{path}, policy {number}"
    types = {field.name: type(field.default) for field in fields(Policy)}
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: it must be a table.")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in types:
            raise ConfigError(f"{where}: {key[:40]!r} is no key; known: {', '.join(types)}.")
        values[key] = _typed(f"{where}: {key}", value, types[key])
    try:
        return Policy(**values)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def _typed(where: str, value: Any, wanted: type) -> Any:
    if wanted is tuple:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        raise ConfigError(f"{where} must be a list of strings.")
    numbers = (int, float) if wanted is float else (wanted,)
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, numbers):
        named = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}[wanted]
        raise ConfigError(f"{where} must be {named}.")
    return value
