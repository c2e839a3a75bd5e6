"""`python -m bench calibration`: the bundled models' calibrations, and how well they hold on other answers.

They are fitted on TinyWorld's validation split under trained kinds and controls, and evaluated on the test
split: in trained wordings and kinds, for which the promise is made, and in held-out ones, which no promise
covers. Every item is asked under one lie and under one other kind, so that there are about as many positives
as negatives. The scores are written to a file, so that a test can draw from them again.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modint_guard.data.item import Family, Item
from modint_guard.data.perturb import applicable, fitting
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError
from modint_guard.evaluation.calibrate import Twin, labelled_answers, twin_of
from modint_guard.evaluation.fit_calibration import calibrate, expected_probes, write_calibration
from modint_guard.evaluation.results import versions, write_results
from modint_guard.evaluation.runner import without_guard
from modint_guard.evaluation.statistics import mean
from modint_guard.judging.calibration import CALIBRATION, Calibration, Fitted, Labelled
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.types import JSON
from modint_training.tinyworld import suite

PARTS = ("validation", "test", "held_out_wording", "held_out_kind")
FIT_FACTOR = 2  # as many items for the fit: otherwise a rarely misled adapter shows too few positives
LIES = ("misleading_description", "contradicting_image")
WEAKER = 0.2  # the miss rate that is promised if there are too few positives for the requested one
DIGITS = 5  # of a feature in the file of scores
NOTES = """\
Risk and threshold from one half each of the validation answers' sources; `part` says on which answers the
figures are. `miss_rate` is the share of positives (wrong under interference, right when clean) that is not
flagged, and promised to be at most `alpha` on answers like the validation ones: expected over such
calibrations, not of each. Held-out wordings and kinds are outside of the promise. `error` is the share of
wrong answers among unflagged ones, `probes` the cells asked on average. An adapter that hardly errs shows too
few positives for the promise that is asked for: it is promised 0.2 then, and where they are too few for that
as well no calibration is made, and `refused` says why."""


@dataclass(frozen=True)
class ScoredAnswers:
    """The labelled answers of one model in one part of the data, by the modality that ought to decide."""

    model: str
    part: str
    answers: Mapping[str, Sequence[Labelled]]


@dataclass(frozen=True)
class ModelFits:
    """One model's calibration by the modality that ought to decide, and the reason if there is none."""

    fitted: Mapping[str, Fitted]
    refused: Mapping[str, str]


def measure_calibration(
    output: Path, scores: Path, *, count: int, seed: int, alpha: float, probes: float, again: bool = True
) -> None:
    """Calibrate base and adapter through vLLM; write their calibrations, the scores and the table.

    With `again=False` the existing scores are used, and no engine is started.
    """
    if again:
        with serving(["--adapter", ADAPTER]) as served:
            write_scores(scores, asyncio.run(_collect(served.url, count, seed)))
    scored = read_scores(scores)  # rounded, so that a test gets the same
    options = f"--count {count} --seed {seed} --alpha {alpha:g} --probes {probes:g}"
    command = f"python -m bench calibration {options}"
    fits = {
        name: fit_model(scored, name, alpha=alpha, probes=probes, seed=seed)
        for name in dict.fromkeys(each.model for each in scored)
    }
    for name, model_fits in fits.items():
        write_bundled(name, model_fits, command)
    write_results(
        output,
        command=command,
        seeds=[seed],
        rows=list(rows(scored, fits)),
        title="The bundled calibrations, on the answers they come from and on others",
        notes=NOTES,
    )


def write_bundled(name: str, fits: ModelFits, command: str) -> None:
    """Write the calibration beside the weights; remove it if nothing could be fitted."""
    file = bundled(name) / CALIBRATION
    if not fits.fitted:
        file.unlink(missing_ok=True)
        return
    calibration = Calibration.model_validate(
        {
            "model": BASE,
            "adapter": None if name == BASE else name,
            "fitted": fits.fitted,
            "command": command,
            "versions": {**versions(), "weights": weights_of(bundled(name))},
        }
    )
    write_calibration(file, calibration)


def weights_of(folder: Path) -> str:
    """The SHA-256 of a folder's weights, in hexadecimal."""
    (file,) = folder.glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fit_model(
    scored: Sequence[ScoredAnswers], model: str, *, alpha: float, probes: float, seed: int
) -> ModelFits:
    """The calibration of one model from its validation answers."""
    (validation,) = (each for each in scored if (each.model, each.part) == (model, "validation"))
    fitted: dict[str, Fitted] = {}
    refused: dict[str, str] = {}
    for relevant, answers in validation.answers.items():
        for promised in sorted({alpha, max(alpha, WEAKER)}):
            try:
                fitted[relevant] = calibrate(answers, alpha=promised, probes=probes, seed=seed)
                refused.pop(relevant, None)
                break
            except ConfigError as exc:
                refused[relevant] = str(exc)
    return ModelFits(fitted, refused)


def twins(part: str, count: int, seed: int) -> list[Twin]:
    """`count` items of each family, each under a lie and under one of the other kinds, which take turns; in
    the part of held-out kinds, under one of these instead. Twice as many items for the fit.
    """
    families: tuple[Family, ...] = ("image-heavy", "text-heavy")
    split: suite.Split = "validation" if part == "validation" else "test"
    count *= FIT_FACTOR if part == "validation" else 1
    pairs = []
    for family in families:
        items = suite.items(family, split, count, seed=seed, held_out=part == "held_out_wording")
        for index, item in enumerate(items):
            fits = {kind.name for kind in fitting(item)}
            pairs += [twin_of(item, name, seed) for name in _kinds(item, index, part) if name in fits]
    return pairs


def _kinds(item: Item, index: int, part: str) -> list[str]:
    kinds = [kind for kind in applicable(item.family) if kind.name != "no_image"]  # it has nothing to remove
    if part == "held_out_kind":
        held_out = [kind.name for kind in kinds if kind.role == "held_out"]
        return [held_out[index % len(held_out)]]
    lies = [kind.name for kind in kinds if kind.name in LIES]
    others = [kind.name for kind in kinds if kind.name not in LIES and kind.role != "held_out"]
    return [*lies, others[index % len(others)]]


def rows(scored: Sequence[ScoredAnswers], fits: Mapping[str, ModelFits]) -> Iterator[dict[str, Any]]:
    """A row for each model, relevant modality and part."""
    for each in scored:
        for relevant, answers in each.answers.items():
            fitted = fits[each.model].fitted.get(relevant)
            yield {
                "model": each.model,
                "relevant": relevant,
                "part": each.part,
                "alpha": fitted.promises[0].alpha if fitted else None,
                "flag_at": fitted.flag_at if fitted else None,
                **outcome(fitted, answers),
                "refused": fits[each.model].refused.get(relevant),
            }


def outcome(fitted: Fitted | None, answers: Sequence[Labelled]) -> dict[str, float | None]:
    """The result of a calibration on labelled answers: the numbers of each kind, the shares that it misses
    and flags, and the probes that it needs; only the numbers if there is no calibration.
    """
    numbers = {
        "positives": sum(a.positive for a in answers),
        "negatives": sum(a.counts and not a.positive for a in answers),
        "wrong_on_both": sum(not a.right and not a.right_when_clean for a in answers),
    }
    if fitted is None:
        return {**numbers, **dict.fromkeys(("miss_rate", "flagged_of_negatives", "error", "probes"))}
    counted = [(a, fitted.risk(a)) for a in answers if a.counts]
    flags = [(a.positive, risk >= fitted.flag_at) for a, risk in counted]
    risks = [risk for _, risk in counted]
    return {
        **numbers,
        "miss_rate": mean([not flag for bad, flag in flags if bad]),
        "flagged_of_negatives": mean([flag for bad, flag in flags if not bad]),
        "error": mean([bad for bad, flag in flags if not flag]),
        "probes": expected_probes(risks, fitted.clear_below, fitted.flag_at) if risks else None,
    }


def write_scores(path: Path, scored: Sequence[ScoredAnswers]) -> None:
    """Write one line for each answer, with rounded features."""
    lines = [
        {
            "model": each.model,
            "part": each.part,
            "relevant": relevant,
            "source": answer.source,
            "right": answer.right,
            "right_when_clean": answer.right_when_clean,
            "features": {name: round(value, DIGITS) for name, value in answer.features.items()},
        }
        for each in scored
        for relevant, answers in each.answers.items()
        for answer in answers
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def read_scores(path: Path) -> list[ScoredAnswers]:
    """Read what `write_scores` wrote."""
    by_part: dict[tuple[str, str], dict[str, list[Labelled]]] = {}
    for text in path.read_text("utf-8").splitlines():
        line: JSON = json.loads(text)
        by_relevant = by_part.setdefault((line["model"], line["part"]), {})
        answer = Labelled(line["features"], line["right"], line["right_when_clean"], line["source"])
        by_relevant.setdefault(line["relevant"], []).append(answer)
    return [ScoredAnswers(model, part, answers) for (model, part), answers in by_part.items()]


async def _collect(url: str, count: int, seed: int) -> list[ScoredAnswers]:
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        unguarded = without_guard(endpoint.complete)
        return [
            ScoredAnswers(model, part, await labelled_answers(twins(part, count, seed), unguarded, model))
            for model in (BASE, ADAPTER)
            for part in PARTS
        ]
