"""A few answers that are asked once more with a guard, for a report to show what gave their words.

Those that a perturbation turned wrong come first, then the longest: an answer of one word has one colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from modint_guard.config import GuardConfig
from modint_guard.data.perturb import CLEAN
from modint_guard.errors import EndpointError, RequestError
from modint_guard.evaluation.effects import direction
from modint_guard.evaluation.journal import Journal, collect
from modint_guard.evaluation.runner import request_for
from modint_guard.evaluation.tables import Answer, clean_answers
from modint_guard.guard import Guard
from modint_guard.probing.teacher_forcing import forced_body
from modint_guard.types import JSON, MAX_DEADLINE_S, Complete

SHOWN = 12  # answers of one model
MOST_CHARACTERS = 2000  # of an answer that is shown
_MOST_LOGPROBS = 128  # that a guard asks for


async def with_colours(
    model: str,
    complete: Complete,
    answers: Sequence[Answer],
    journal: Journal,
    *,
    top_logprobs: Callable[[], Any],
    name: str = "0",
    concurrency: int = 8,
) -> list[Answer]:
    """The answers, of which at most SHOWN have a completion with a verdict beside them (`judged`).

    top_logprobs: how many log-probabilities the endpoint gives, awaited if something has to be asked; without
    any, no words can be coloured. name: the model's, in the journal. Raises EndpointError.
    """
    chosen = {f"{name}/coloured/{answers[place].variant.key}": place for place in chosen_of(answers)}
    if any(key not in journal.records for key in chosen):
        top = await top_logprobs()
        if not top:
            return list(answers)
        longer = any(len(answers[place].text.split()) > 1 for place in chosen.values())
        scores = longer and await _scores(complete, model, answers[0])
        config = GuardConfig(
            top_logprobs=min(top, _MOST_LOGPROBS), teacher_forcing=scores, deadline_s=MAX_DEADLINE_S
        )
        one = partial(_judged, model, Guard(config), complete)
        jobs = {key: partial(one, answers[place]) for key, place in chosen.items()}
        await collect(jobs, journal, concurrency=concurrency)
    judged = {place: journal.records[key] for key, place in chosen.items()}
    return [replace(each, judged=judged.get(place)) for place, each in enumerate(answers)]


def chosen_of(answers: Sequence[Answer]) -> list[int]:
    """The places of at most SHOWN answers about pictures: those that a perturbation turned from right to
    wrong, then the longest; no empty ones, and none of more than MOST_CHARACTERS.
    """
    clean = clean_answers(answers)

    def rank(place: int) -> tuple[bool, int, int]:
        answer = answers[place]
        is_turned = (
            answer.variant.perturbation != CLEAN
            and (before := clean.get(answer.variant.item.id)) is not None
            and direction(before.answered, answer.answered) == "harmful"
        )
        return not is_turned, -len(answer.text.split()), place

    able = [
        place
        for place, each in enumerate(answers)
        if each.skip is None
        and (each.variant.base or each.variant.item.image)
        and 0 < len(each.text.strip()) <= MOST_CHARACTERS
    ]
    return sorted(able, key=rank)[:SHOWN]


async def _judged(model: str, guard: Guard, complete: Complete, answer: Answer) -> JSON:
    """What is kept of a completion with a verdict: its text, its `modint` object."""
    found = await guard.inspect(request_for(answer.variant.whole(), model), complete)
    text = found.completion["choices"][0]["message"]["content"]
    return {"choices": [{"message": {"content": text}}], "modint": found.report.to_json()}


async def _scores(complete: Complete, model: str, answer: Answer) -> bool:
    """Whether the endpoint scores an answer that it is given."""
    body = request_for(answer.variant.whole(), model)
    del body["modint"]
    try:
        return bool((await complete(forced_body(body, "yes", 1))).get("prompt_logprobs"))
    except (EndpointError, RequestError):
        return False
