"""`python -m bench thresholds`: the guard's default risk, fitted on TinyWorld's validation split.

Base and adapter answer each item with its views through the real engine; the risk is a logistic of the
divergence and the margin of the view without the irrelevant modality, fitted to "the answer is wrong".
Questions about a picture without a caption set `confident`: the probability from which an answer that is also
given without the picture counts as a guess. The fitted constants are the defaults of
`modint_guard.judging.risk.Thresholds`: a starting point for models like TinyWorld's, and no calibration of
any other model.
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
Ask = Callable[[Guard, Complete, Item, str], Awaitable[T | None]]  # asks a model (by name) one item

# Trained kinds and controls only: nothing is fitted to held-out perturbations or wordings.
FITTED_ON: tuple[tuple[Family, str], ...] = (
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
GRID = tuple(round(0.05 * step, 2) for step in range(4, 20))  # candidates for flag_at
RIGHT_FLAGGED = 0.05  # the share of right answers that may be flagged
GUESSED: tuple[Family, ...] = ("image-heavy", "vqa")  # asked clean: only the rule for `prior` can flag them
CONFIDENT = (0.9, 0.99, 0.999, 0.9999, 0.99999)  # candidates for `confident`
RIGHT_GUESSED = 0.01  # the share of right answers that may be flagged as guesses


@dataclass(frozen=True)
class RiskSample:
    """One answer's features, and whether it was wrong.

    `flip` is true if every condition of a flag but the risk is met: the view flips and, for an image-heavy
    item, the text alone reproduces the answer.
    """

    divergence: float
    margin: float
    flip: bool
    wrong: bool


@dataclass(frozen=True)
class GuessSample:
    """The probability of an answer about a picture without the picture (0 if another answer is likelier), and
    whether it was wrong."""

    certainty: float
    wrong: bool


@dataclass(frozen=True)
class ModelSamples:
    """The samples of one model."""

    samples: Sequence[RiskSample]
    guesses: Sequence[GuessSample]


def measure_thresholds(output: Path, *, count: int, seed: int) -> None:
    """Fit the default risk on the validation split, through vLLM, and write the table."""
    with serving(["--adapter", ADAPTER]) as served:
        by_model = asyncio.run(_collect(served.url, count, seed))
    pooled = [sample for each in by_model.values() for sample in each.samples]
    guesses = [guess for each in by_model.values() for guess in each.guesses]
    model = fit(pooled)
    flag_at, confident = choose_flag_at(model, pooled), choose_confident(guesses)
    rows = [
        {
            **{"model": name, "n": len(each.samples), **constants(model, flag_at)},
            **outcomes(model, each.samples, flag_at),
            "confident": confident,
            "guessed_of_right": guessed_of_right(each.guesses, confident),
        }
        for name, each in by_model.items()
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


async def _collect(url: str, count: int, seed: int) -> dict[str, ModelSamples]:
    items = [
        suite.perturbed(item, name, seed=seed)
        for family, name in FITTED_ON
        for item in suite.items(family, "validation", count, seed=seed)
    ]
    clean = [item for family in GUESSED for item in suite.items(family, "validation", count, seed=seed)]
    async with Endpoint(f"{url}/v1", timeout_s=120) as endpoint:
        return {
            name: ModelSamples(
                await _ask_all(endpoint, risk_sample, items, name),
                await _ask_all(endpoint, guess_sample, clean, name),
            )
            for name in (BASE, ADAPTER)
        }


async def _ask_all(endpoint: Endpoint, ask: Ask[T], items: Sequence[Item], model: str) -> list[T]:
    guard, unguarded = Guard(), without_guard(endpoint.complete)
    jobs = {number: partial(ask, guard, unguarded, item, model) for number, item in enumerate(items)}
    samples = await ask_each(jobs, concurrency=6)
    return [sample for sample in samples.values() if sample is not None]


async def risk_sample(guard: Guard, complete: Complete, item: Item, model: str) -> RiskSample | None:
    """Ask one item with its views; None if the view without the irrelevant modality cannot be scored."""
    text, cells = await _scored(guard, complete, item, model)
    if REMOVED[item.family] not in cells or NEUTRAL_IMAGE not in cells:
        return None
    cell = cells[REMOVED[item.family]]
    flip = bool(cell.flip) and (item.family == "text-heavy" or cells[NEUTRAL_IMAGE].reproduces)
    return RiskSample(cell.divergence, cell.margin, flip, not is_right(item, text))


async def guess_sample(guard: Guard, complete: Complete, item: Item, model: str) -> GuessSample | None:
    """Ask one clean item about a picture, also with a neutral picture; None if that cannot be scored."""
    text, cells = await _scored(guard, complete, item, model)
    if NEUTRAL_IMAGE not in cells:
        return None
    cell = cells[NEUTRAL_IMAGE]
    return GuessSample(cell.p_answer if cell.reproduces else 0.0, not is_right(item, text))


async def _scored(
    guard: Guard, complete: Complete, item: Item, model: str
) -> tuple[str, Mapping[str, CellScore]]:
    plan = guard.plan(request_for(item, model))
    answer, replies = await asyncio.gather(
        complete(main_body(plan)), probe.run(plan.views, complete, deadline_s=plan.schedule.deadline_s)
    )
    reply = reply_of(answer)
    return reply.text, scoring.score(reply, replies, plan.chat, guard.config.thresholds).cells


def fit(samples: Sequence[RiskSample]) -> Logistic:
    """A logistic of (JS, margin) for "wrong" (`risk.fit`). Raises ConfigError if all answers are right or all
    are wrong.
    """
    return risk.fit([_features(s) for s in samples], [s.wrong for s in samples], names=("js", "margin"))


def _features(sample: RiskSample) -> dict[str, float]:
    return {"js": sample.divergence, "margin": sample.margin}


def choose_flag_at(model: Logistic, samples: Sequence[RiskSample]) -> float:
    """The lowest value of GRID that flags at most RIGHT_FLAGGED of the right answers; the highest if none
    does."""
    allowed = (at for at in GRID if outcomes(model, samples, at)["flagged_of_right"] <= RIGHT_FLAGGED)
    return next(allowed, GRID[-1])


def choose_confident(guesses: Sequence[GuessSample]) -> float:
    """The lowest of CONFIDENT that flags at most RIGHT_GUESSED of the right answers; the highest if none
    does."""
    allowed = (at for at in CONFIDENT if guessed_of_right(guesses, at) <= RIGHT_GUESSED)
    return next(allowed, CONFIDENT[-1])


def guessed_of_right(guesses: Sequence[GuessSample], confident: float) -> float:
    """The share of right answers that have at least this probability without the picture."""
    return mean(guess.certainty >= confident for guess in guesses if not guess.wrong) or 0.0


def constants(model: Logistic, flag_at: float) -> dict[str, float]:
    """The fitted constants, named as in `Thresholds`."""
    return {
        "bias": model.bias,
        "weight_js": model.weights["js"],
        "weight_margin": model.weights["margin"],
        "flag_at": flag_at,
    }


def outcomes(model: Logistic, samples: Sequence[RiskSample], flag_at: float) -> dict[str, float]:
    """The number of wrong answers, and the shares of wrong and of right answers flagged at a threshold."""
    flags = np.array([s.flip and model.risk(_features(s)) >= flag_at for s in samples])
    wrong = np.array([sample.wrong for sample in samples])
    return {
        "wrong": int(wrong.sum()),
        "flagged_of_wrong": float(flags[wrong].mean()) if wrong.any() else 0.0,
        "flagged_of_right": 0.0 if wrong.all() else float(flags[~wrong].mean()),
    }
