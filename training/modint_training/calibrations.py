"""`modint-guard results calibration`: the bundled models' calibrations, and how they hold on other answers.

Fitted on TinyWorld's validation split under trained kinds and controls, and looked at on the test split: in
trained wordings and kinds, as the promise is given, and in held-out ones, which no promise covers. The scores
are written down, so that a test can draw from them again and again.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modint_guard.calibrate import Twin, labelled_answers, twins_of
from modint_guard.calibration import CALIBRATION, Calibration, Fitted, Labelled, calibrate, write_calibration
from modint_guard.endpoint import Endpoint
from modint_guard.item import Family
from modint_guard.launch import serving
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.perturb import REGISTRY
from modint_guard.results import versions, write_results
from modint_guard.types import JSON
from modint_training.tinyworld import suite

PARTS = ("validation", "test", "held_out_wording", "held_out_kind")
DIGITS = 5  # of a feature, as it is written down
NOTES = """\
Risk and threshold from one half each of the validation answers' sources; `part` says on which answers the
figures are. `miss_rate` is the share of positives (wrong under interference, right when clean) that is not
flagged, and promised to be at most `alpha` on answers like the validation ones: expected over such
calibrations, not of each. Held-out wordings and kinds are outside of the promise. `error` is the share of
wrong answers among unflagged ones."""


@dataclass(frozen=True)
class Scored:
    """The answers of one model in one part of the data, by the modality that ought to decide."""

    model: str
    part: str
    answers: Mapping[str, Sequence[Labelled]]


def measure_calibration(output: Path, scores: Path, *, count: int, seed: int, alpha: float) -> None:
    """Calibrate base and adapter through vLLM; write their files, the scores and the table."""
    with serving(["--adapter", ADAPTER]) as served:
        found = asyncio.run(_collect(served.url, count, seed))
    write_scores(scores, found)
    found = read_scores(scores)  # as they are written down, so that a test finds the same
    command = f"modint-guard results calibration --count {count} --seed {seed} --alpha {alpha:g}"
    fitted = {
        name: fit_model(found, name, alpha=alpha, seed=seed) for name in dict.fromkeys(s.model for s in found)
    }
    for name, each in fitted.items():
        made = Calibration(
            model=BASE,
            adapter=None if name == BASE else name,
            fitted=each,
            command=command,
            versions={**versions(), "weights": weights_of(bundled(name))},
        )
        write_calibration(bundled(name) / CALIBRATION, made)
    write_results(
        output,
        command=command,
        seeds=[seed],
        rows=list(rows(found, fitted)),
        title="The bundled calibrations, on the answers they come from and on others",
        notes=NOTES,
    )


def weights_of(folder: Path) -> str:
    """SHA-256 of a folder's weights."""
    (file,) = folder.glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fit_model(found: Sequence[Scored], model: str, *, alpha: float, seed: int) -> dict[Any, Fitted]:
    """The calibration of one model from its validation answers, by relevant modality."""
    (own,) = (each for each in found if (each.model, each.part) == (model, "validation"))
    return {name: calibrate(answers, alpha=alpha, seed=seed) for name, answers in own.answers.items()}


def twins(part: str, count: int, seed: int) -> list[Twin]:
    """The clean and disturbed items of a part: held-out kinds in theirs alone."""
    families: tuple[Family, ...] = ("image-heavy", "text-heavy")
    split: suite.Split = "validation" if part == "validation" else "test"
    items = [
        item
        for family in families
        for item in suite.items(family, split, count, seed=seed, held_out=part == "held_out_wording")
    ]
    wanted = part == "held_out_kind"
    return [
        twin
        for twin in twins_of(items, seed)
        if (REGISTRY[twin.disturbed.perturbation].role == "held_out") == wanted
    ]


def rows(found: Sequence[Scored], fitted: Mapping[str, Mapping[Any, Fitted]]) -> Iterator[dict[str, Any]]:
    """A row a model, relevant modality and part."""
    for scored in found:
        for relevant, answers in scored.answers.items():
            each = fitted[scored.model][relevant]
            yield {
                "model": scored.model,
                "relevant": relevant,
                "part": scored.part,
                "alpha": each.promises[0].alpha,
                "flag_at": each.flag_at,
                **kept(each, answers),
            }


def kept(fitted: Fitted, answers: Sequence[Labelled]) -> dict[str, float | None]:
    """What a threshold does to labelled answers: numbers of each kind, and the shares it misses or flags."""
    counted = [(a, fitted.risk(a) >= fitted.flag_at) for a in answers if a.counts]
    bad = [flag for a, flag in counted if a.positive]
    good = [flag for a, flag in counted if not a.positive]
    passed = [a.positive for a, flag in counted if not flag]
    return {
        "positives": len(bad),
        "negatives": len(good),
        "wrong_on_both": sum(not a.right and not a.right_when_clean for a in answers),
        "miss_rate": 1 - sum(bad) / len(bad) if bad else None,
        "flagged_of_negatives": sum(good) / len(good) if good else None,
        "error": sum(passed) / len(passed) if passed else None,
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

        async def unguarded(body: JSON) -> JSON:
            return await endpoint.complete({**body, "modint": {"mode": "off"}})

        return [
            Scored(model, part, await labelled_answers(twins(part, count, seed), unguarded, model))
            for model in (BASE, ADAPTER)
            for part in PARTS
        ]
