"""Fit the guard's default risk on TinyWorld's validation split, through the real engine.

Each item is answered by base and adapter with its views; the risk is a logistic of the divergence and the
margin of the view without the irrelevant modality, fitted to "the answer is wrong". Questions about pictures
with nothing beside them say from which probability on an answer that comes without the picture as well is to
be called a guess (`confident`). The fitted constants are the defaults of `modint_guard.config.Thresholds`: a
starting point for TinyWorld-like models, not a calibration of anyone else's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from modint_guard.chat.reply import reply_of
from modint_guard.data.item import Family, Item, is_right
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.evaluation.asking import ask_each
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import request_for, without_guard
from modint_guard.evaluation.statistics import mean
from modint_guard.guard import Guard
from modint_guard.judging import risk, scoring
from modint_guard.judging.risk import Logistic
from modint_guard.models import ADAPTER, BASE
from modint_guard.plan import main_body
from modint_guard.probing import probe
from modint_guard.types import NEUTRAL_IMAGE, NO_CONTEXT, CellScore, Complete
from modint_training.tinyworld import suite

T = TypeVar("T")
Look = Callable[[Guard, Complete, Item, str], Awaitable[T | None]]  # one item asked of one model

# Trained kinds and controls only: held-out perturbations and wordings choose nothing.
CHOSEN: tuple[tuple[Family, str], ...] = (
    ("image-heavy", "misleading_description"),
    ("image-heavy", "true_description"),
    ("image-heavy", "unrelated_facts"),
    ("image-heavy", "neutral_text"),
    ("text-heavy", "contradicting_image"),
    ("text-heavy", "agreeing_image"),
    ("text-heavy", "noise"),
    ("text-heavy", "black"),
)
REMOVED = {"image-heavy": NO_CONTEXT, "text-heavy": NEUTRAL_IMAGE}
GRID = tuple(round(0.05 * step, 2) for step in range(4, 20))  # where flag_at may lie
RIGHT_FLAGGED = 0.05  # share of right answers that may be flagged
GUESSED: tuple[Family, ...] = ("image-heavy", "vqa")  # clean: nothing but the prior rule can flag them
CONFIDENT = (0.9, 0.99, 0.999, 0.9999, 0.99999)  # where `confident` may lie
RIGHT_GUESSED = 0.01  # share of right answers that may be flagged as guesses


@dataclass(frozen=True)
class Sample:
    """What the policy sees of one answer, and whether the answer was wrong.

    `flip` holds where everything but the risk speaks for a flag: the view flips and, for an image-heavy item,
    text alone reproduces the answer.
    """

    divergence: float
    margin: float
    flip: bool
    wrong: bool


@dataclass(frozen=True)
class Guess:
    """How probable an answer about a picture is without the picture (0 where another one is likelier), and
    whether it was wrong."""

    certainty: float
    wrong: bool


@dataclass(frozen=True)
class Seen:
    """What one model answered."""

    samples: Sequence[Sample]
    guesses: Sequence[Guess]


def measure_thresholds(output: Path, *, count: int, seed: int) -> None:
    """Fit the default risk on the validation split, through vLLM."""
    with serving(["--adapter", ADAPTER]) as served:
        seen = asyncio.run(_collect(served.url, count, seed))
    pooled = [sample for found in seen.values() for sample in found.samples]
    guesses = [guess for found in seen.values() for guess in found.guesses]
    model = fit(pooled)
    flag_at, confident = choose_flag_at(model, pooled), choose_confident(guesses)
    rows = [
        {
            **{"model": name, "n": len(found.samples), **constants(model, flag_at)},
            **outcomes(model, found.samples, flag_at),
            "confident": confident,
            "guessed_of_right": guessed_of_right(found.guesses, confident),
        }
        for name, found in seen.items()
    ]
    write_results(
        output,
        command=f"python -m bench thresholds --count {count} --seed {seed}",
        seeds=[seed],
        rows=rows,
        title="Default thresholds, fitted on the validation split",
        notes="One logistic for both models: risk = sigmoid(bias + weight_js * JS + weight_margin * margin);"
        " an answer is flagged where the policy's other conditions hold and the risk reaches flag_at, the"
        f" lowest of {', '.join(map(str, GRID))} that flags at most {RIGHT_FLAGGED:.0%} of the right answers"
        " of both models together. Shares are of the wrong and of the right answers of each. `confident` is"
        f" the lowest of {', '.join(map(str, CONFIDENT))} that flags at most {RIGHT_GUESSED:.0%} of the right"
        f" answers of both models about clean pictures as guesses (`prior`): {confident:g} here.",
    )


async def _collect(url: str, count: int, seed: int) -> dict[str, Seen]:
    items = [
        suite.perturbed(item, name, seed=seed)
        for family, name in CHOSEN
        for item in suite.items(family, "validation", count, seed=seed)
    ]
    clean = [item for family in GUESSED for item in suite.items(family, "validation", count, seed=seed)]
    async with Endpoint(f"{url}/v1", timeout_s=120) as endpoint:
        return {
            name: Seen(
                await _each(endpoint, sample, items, name), await _each(endpoint, guessed, clean, name)
            )
            for name in (BASE, ADAPTER)
        }


async def _each(endpoint: Endpoint, look: Look[T], items: Sequence[Item], model: str) -> list[T]:
    guard, unguarded = Guard(), without_guard(endpoint.complete)
    jobs = {number: partial(look, guard, unguarded, item, model) for number, item in enumerate(items)}
    found = await ask_each(jobs, concurrency=6)
    return [answer for answer in found.values() if answer is not None]


async def sample(guard: Guard, complete: Complete, item: Item, model: str) -> Sample | None:
    """Ask one item with its views; None where the view without the irrelevant modality cannot be scored."""
    text, cells = await _scored(guard, complete, item, model)
    if REMOVED[item.family] not in cells or NEUTRAL_IMAGE not in cells:
        return None
    cell = cells[REMOVED[item.family]]
    flip = bool(cell.flip) and (item.family == "text-heavy" or cells[NEUTRAL_IMAGE].reproduces)
    return Sample(cell.divergence, cell.margin, flip, not is_right(item, text))


async def guessed(guard: Guard, complete: Complete, item: Item, model: str) -> Guess | None:
    """Ask one clean item about a picture with a neutral picture as well; None where that cannot be scored."""
    text, cells = await _scored(guard, complete, item, model)
    if NEUTRAL_IMAGE not in cells:
        return None
    cell = cells[NEUTRAL_IMAGE]
    return Guess(cell.p_answer if cell.reproduces else 0.0, not is_right(item, text))


async def _scored(
    guard: Guard, complete: Complete, item: Item, model: str
) -> tuple[str, Mapping[str, CellScore]]:
    plan = guard.plan(request_for(item, model))
    answer, replies = await asyncio.gather(
        complete(main_body(plan)), probe.run(plan.views, complete, deadline_s=plan.schedule.deadline_s)
    )
    reply = reply_of(answer)
    return reply.text, scoring.score(reply, replies, plan.chat, guard.config.thresholds).cells


def fit(samples: Sequence[Sample]) -> Logistic:
    """A logistic of (JS, margin) for "wrong" (`risk.fit`). Raises ConfigError where all answers are right or
    all are wrong.
    """
    return risk.fit([_features(s) for s in samples], [s.wrong for s in samples], names=("js", "margin"))


def _features(sample: Sample) -> dict[str, float]:
    return {"js": sample.divergence, "margin": sample.margin}


def choose_flag_at(model: Logistic, samples: Sequence[Sample]) -> float:
    """The lowest value of GRID that flags at most RIGHT_FLAGGED of the right answers, or the highest."""
    allowed = (at for at in GRID if outcomes(model, samples, at)["flagged_of_right"] <= RIGHT_FLAGGED)
    return next(allowed, GRID[-1])


def choose_confident(guesses: Sequence[Guess]) -> float:
    """The lowest of CONFIDENT that flags at most RIGHT_GUESSED of the right answers, or the highest."""
    allowed = (at for at in CONFIDENT if guessed_of_right(guesses, at) <= RIGHT_GUESSED)
    return next(allowed, CONFIDENT[-1])


def guessed_of_right(guesses: Sequence[Guess], confident: float) -> float:
    """The share of right answers that come with at least this probability without the picture."""
    return mean(guess.certainty >= confident for guess in guesses if not guess.wrong) or 0.0


def constants(model: Logistic, flag_at: float) -> dict[str, float]:
    """The fitted constants under the names of `Thresholds`."""
    return {
        "bias": model.bias,
        "weight_js": model.weights["js"],
        "weight_margin": model.weights["margin"],
        "flag_at": flag_at,
    }


def outcomes(model: Logistic, samples: Sequence[Sample], flag_at: float) -> dict[str, float]:
    """Shares of wrong and of right answers that would be flagged at a threshold."""
    flags = np.array([s.flip and model.risk(_features(s)) >= flag_at for s in samples])
    wrong = np.array([sample.wrong for sample in samples])
    return {
        "wrong": int(wrong.sum()),
        "flagged_of_wrong": float(flags[wrong].mean()) if wrong.any() else 0.0,
        "flagged_of_right": 0.0 if wrong.all() else float(flags[~wrong].mean()),
    }
