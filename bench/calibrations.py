"""`python -m bench calibration`: the bundled models' calibrations, and how they hold on other answers.

Fitted on TinyWorld's validation split under trained kinds and controls, and looked at on the test split: in
trained wordings and kinds, as the promise is given, and in held-out ones, which no promise covers. Every item
is told one lie and stands under one other kind, so that positives and negatives come to about as many. The
scores are written down, so that a test can draw from them again and again.
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
FITTED_TIMES = 2  # an adapter that is rarely misled shows too few positives otherwise
LIES = ("misleading_description", "contradicting_image")
WEAKER = 0.2  # the miss rate that is promised instead where positives are too few for the one asked for
DIGITS = 5  # of a feature, as it is written down
NOTES = """\
Risk and threshold from one half each of the validation answers' sources; `part` says on which answers the
figures are. `miss_rate` is the share of positives (wrong under interference, right when clean) that is not
flagged, and promised to be at most `alpha` on answers like the validation ones: expected over such
calibrations, not of each. Held-out wordings and kinds are outside of the promise. `error` is the share of
wrong answers among unflagged ones, `probes` the cells asked on average. An adapter that hardly errs shows too
few positives for the promise that is asked for: it is promised 0.2 then, and where they are too few for that
as well no calibration is made, and `refused` says why."""


@dataclass(frozen=True)
class Scored:
    """The answers of one model in one part of the data, by the modality that ought to decide."""

    model: str
    part: str
    answers: Mapping[str, Sequence[Labelled]]


@dataclass(frozen=True)
class Fits:
    """One model's calibration by the modality that ought to decide, and why there is none for the others."""

    fitted: Mapping[str, Fitted]
    refused: Mapping[str, str]


def measure_calibration(
    output: Path, scores: Path, *, count: int, seed: int, alpha: float, probes: float, again: bool = True
) -> None:
    """Calibrate base and adapter through vLLM; write their files, the scores and the table.

    With `again=False` the scores that were written before are used, and no engine is started.
    """
    if again:
        with serving(["--adapter", ADAPTER]) as served:
            write_scores(scores, asyncio.run(_collect(served.url, count, seed)))
    found = read_scores(scores)  # as they are written down, so that a test finds the same
    options = f"--count {count} --seed {seed} --alpha {alpha:g} --probes {probes:g}"
    command = f"python -m bench calibration {options}"
    fits = {
        name: fit_model(found, name, alpha=alpha, probes=probes, seed=seed)
        for name in dict.fromkeys(s.model for s in found)
    }
    for name, each in fits.items():
        write_bundled(name, each, command)
    write_results(
        output,
        command=command,
        seeds=[seed],
        rows=list(rows(found, fits)),
        title="The bundled calibrations, on the answers they come from and on others",
        notes=NOTES,
    )


def write_bundled(name: str, fits: Fits, command: str) -> None:
    """The file beside the weights; none where nothing could be fitted."""
    file = bundled(name) / CALIBRATION
    if not fits.fitted:
        file.unlink(missing_ok=True)
        return
    made = Calibration.model_validate(
        {
            "model": BASE,
            "adapter": None if name == BASE else name,
            "fitted": fits.fitted,
            "command": command,
            "versions": {**versions(), "weights": weights_of(bundled(name))},
        }
    )
    write_calibration(file, made)


def weights_of(folder: Path) -> str:
    """SHA-256 of a folder's weights."""
    (file,) = folder.glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fit_model(found: Sequence[Scored], model: str, *, alpha: float, probes: float, seed: int) -> Fits:
    """The calibration of one model from its validation answers."""
    (own,) = (each for each in found if (each.model, each.part) == (model, "validation"))
    fitted: dict[str, Fitted] = {}
    refused: dict[str, str] = {}
    for relevant, answers in own.answers.items():
        for promised in sorted({alpha, max(alpha, WEAKER)}):
            try:
                fitted[relevant] = calibrate(answers, alpha=promised, probes=probes, seed=seed)
                refused.pop(relevant, None)
                break
            except ConfigError as exc:
                refused[relevant] = str(exc)
    return Fits(fitted, refused)


def twins(part: str, count: int, seed: int) -> list[Twin]:
    """`count` items of both families, each told a lie and each under another kind, which take turns; of the
    held-out kinds one each in their own part, and in no other. Twice as many items for the fit.
    """
    families: tuple[Family, ...] = ("image-heavy", "text-heavy")
    split: suite.Split = "validation" if part == "validation" else "test"
    count *= FITTED_TIMES if part == "validation" else 1
    found = []
    for family in families:
        made = suite.items(family, split, count, seed=seed, held_out=part == "held_out_wording")
        for index, item in enumerate(made):
            fits = {kind.name for kind in fitting(item)}
            found += [twin_of(item, name, seed) for name in _kinds(item, index, part) if name in fits]
    return found


def _kinds(item: Item, index: int, part: str) -> list[str]:
    kinds = [kind for kind in applicable(item.family) if kind.name != "no_image"]  # nothing to take out there
    if part == "held_out_kind":
        held_out = [kind.name for kind in kinds if kind.role == "held_out"]
        return [held_out[index % len(held_out)]]
    lies = [kind.name for kind in kinds if kind.name in LIES]
    others = [kind.name for kind in kinds if kind.name not in LIES and kind.role != "held_out"]
    return [*lies, others[index % len(others)]]


def rows(found: Sequence[Scored], fits: Mapping[str, Fits]) -> Iterator[dict[str, Any]]:
    """A row a model, relevant modality and part."""
    for scored in found:
        for relevant, answers in scored.answers.items():
            each = fits[scored.model].fitted.get(relevant)
            yield {
                "model": scored.model,
                "relevant": relevant,
                "part": scored.part,
                "alpha": each.promises[0].alpha if each else None,
                "flag_at": each.flag_at if each else None,
                **kept(each, answers),
                "refused": fits[scored.model].refused.get(relevant),
            }


def kept(fitted: Fitted | None, answers: Sequence[Labelled]) -> dict[str, float | None]:
    """What a calibration does to labelled answers: numbers of each kind, the shares it misses or flags, and
    the probes it takes; the numbers alone where there is none.
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


def write_scores(path: Path, found: Sequence[Scored]) -> None:
    """One line an answer, features rounded."""
    lines = [
        {
            "model": scored.model,
            "part": scored.part,
            "relevant": relevant,
            "source": answer.source,
            "right": answer.right,
            "right_when_clean": answer.right_when_clean,
            "features": {name: round(value, DIGITS) for name, value in answer.features.items()},
        }
        for scored in found
        for relevant, answers in scored.answers.items()
        for answer in answers
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def read_scores(path: Path) -> list[Scored]:
    """What `write_scores` wrote."""
    held: dict[tuple[str, str], dict[str, list[Labelled]]] = {}
    for text in path.read_text("utf-8").splitlines():
        line: JSON = json.loads(text)
        of = held.setdefault((line["model"], line["part"]), {})
        answer = Labelled(line["features"], line["right"], line["right_when_clean"], line["source"])
        of.setdefault(line["relevant"], []).append(answer)
    return [Scored(model, part, answers) for (model, part), answers in held.items()]


async def _collect(url: str, count: int, seed: int) -> list[Scored]:
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        unguarded = without_guard(endpoint.complete)
        return [
            Scored(model, part, await labelled_answers(twins(part, count, seed), unguarded, model))
            for model in (BASE, ADAPTER)
            for part in PARTS
        ]
