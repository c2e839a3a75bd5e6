"""A calibration: risk and threshold with a guarantee, fitted to labelled answers, and the file that holds it.

A file is bound to one model, one adapter and the probes its risks come from, and bears a digest of its own
content: it is refused where it is damaged, edited, or made for another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modint_guard import curves, guarantees
from modint_guard.config import Thresholds
from modint_guard.errors import ConfigError
from modint_guard.perturb import seeded
from modint_guard.risk import FEATURES, Logistic, fit
from modint_guard.types import CELLS, Relevant

SCHEMA = "modint-calibration-1"
CALIBRATION = "calibration.json"  # beside weights: what `serve` uses where no other is named
FITTED_SHARE = 0.5  # of the question sources; the threshold is set on the others


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer under interference with its truth, and whether its clean twin was answered rightly.

    `source` names what questions share (a bitmap, a passage): one source never serves both fit and threshold.
    """

    features: Mapping[str, float]
    right: bool
    right_when_clean: bool
    source: str

    @property
    def positive(self) -> bool:
        """Wrong under interference, right on the clean twin."""
        return not self.right and self.right_when_clean

    @property
    def counts(self) -> bool:
        """Whether the clean twin was right: answers wrong on both say nothing of interference."""
        return self.right_when_clean


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Promise(_Record):
    """What is promised of a threshold, and from how many answers."""

    kind: Literal["miss", "error"]
    alpha: float = Field(gt=0, lt=1)
    delta: float | None = Field(default=None, gt=0, lt=1)
    flag_at: float = Field(ge=0, le=1)
    n: int = Field(ge=1, description="positives for a miss rate, unflagged answers for an error")


class Fitted(_Record):
    """Risk and threshold for requests that one modality ought to decide."""

    bias: float
    weights: dict[str, float]
    flag_at: float = Field(ge=0, le=1)
    clear_below: float = Field(default=0.0, ge=0, le=1)
    expected_probes: float = Field(default=3.0, ge=1, description="of the labelled answers, cells alone")
    promises: tuple[Promise, ...]
    positives: int = Field(ge=1)
    negatives: int = Field(ge=1)
    wrong_on_both: int = Field(ge=0)
    right_only_when_disturbed: int = Field(ge=0)
    flagged_of_negatives: float = Field(ge=0, le=1)
    feasible_flags: float = Field(ge=0, le=1, description="least share to flag, were flags perfect")
    auroc: float = Field(ge=0, le=1)
    calibration_error: float = Field(ge=0, le=1)

    def risk(self, answer: Labelled) -> float:
        """The risk of an answer, in [0, 1]."""
        return Logistic(self.bias, self.weights).risk(dict(answer.features))

    def thresholds(self, base: Thresholds) -> Thresholds:
        """The constants of a verdict with these in place of the defaults."""
        held = {field: getattr(base, field) for field in ("flip_margin", "confident", "min_option_mass")}
        weights = {f"weight_{name}": self.weights.get(name, 0.0) for name in FEATURES}
        return Thresholds(
            bias=self.bias,
            flag_at=self.flag_at,
            clear_below=self.clear_below,
            by_risk_alone=True,
            min_probability=base.min_probability,
            **weights,
            **held,
        )


class Calibration(_Record):
    """All that a calibration file holds."""

    format: Literal["modint-calibration-1"] = "modint-calibration-1"
    model: str = Field(min_length=1)
    adapter: str | None = None
    probes: tuple[str, ...] = CELLS
    method: Literal["first_token", "teacher_forced"] = "first_token"
    fitted: dict[Literal["image", "text"], Fitted]
    command: str = ""
    versions: dict[str, str] = {}

    @property
    def served_name(self) -> str:
        """The name under which requests ask for it."""
        return self.adapter or self.model

    def thresholds(self, relevant: Relevant, base: Thresholds) -> Thresholds | None:
        """The constants for requests that this modality ought to decide; None where it was not fitted."""
        fitted = {Relevant(name): each for name, each in self.fitted.items()}.get(relevant)
        return None if fitted is None else fitted.thresholds(base)

    def stops_early(self, relevant: Relevant) -> bool:
        """Whether a first view may settle such requests; those that both modalities decide, where any may."""
        return any(
            each.clear_below > 0.0 for name, each in self.fitted.items() if relevant in (name, Relevant.BOTH)
        )


def calibrate(
    answers: Sequence[Labelled],
    *,
    alpha: float = 0.1,
    error: float | None = None,
    delta: float = 0.1,
    probes: float | None = None,
    seed: int = 0,
) -> Fitted:
    """Fit the risk on half of the sources and set the threshold on the other half.

    alpha: the miss rate promised (conformal risk control); the threshold is then lowered as far as that flags
    no further negative. error: where given, it is lowered instead, if need be, until at most this share of
    unflagged answers is wrong with confidence 1 - delta (learn then test). probes: where given, the first
    probe flags what reaches the threshold and clears answers as far as it takes to ask this many a request on
    average. Raises ConfigError with too few positives or without negatives, and where `error` or `probes`
    cannot be kept.
    """
    fitting, setting = halves(answers, seed)
    _check_classes(fitting)
    _check_classes(setting)
    model = fit([dict(a.features) for a in fitting], [a.positive for a in fitting])
    risks = [model.risk(dict(a.features)) for a in setting]
    truth = [a.positive for a in setting]
    positives = [risk for risk, bad in zip(risks, truth, strict=True) if bad]
    missed_below = guarantees.miss_threshold(positives, alpha)
    promises = [Promise(kind="miss", alpha=alpha, flag_at=missed_below, n=len(positives))]
    if error is not None:
        promises.append(_error_promise(risks, truth, error, delta, missed_below))
        flag_at = min(promise.flag_at for promise in promises)
    else:
        flag_at = lowered(missed_below, risks, truth)
    clear_below = 0.0 if probes is None else clear_threshold(risks, flag_at, probes)
    calm = [risk for risk, bad in zip(risks, truth, strict=True) if not bad]
    share = sum(truth) / len(truth)
    return Fitted(
        bias=model.bias,
        weights=model.weights,
        flag_at=flag_at,
        clear_below=clear_below,
        expected_probes=expected_probes(risks, clear_below, flag_at),
        promises=tuple(promises),
        positives=len(positives),
        negatives=len(calm),
        wrong_on_both=sum(not a.right and not a.right_when_clean for a in answers),
        right_only_when_disturbed=sum(a.right and not a.right_when_clean for a in answers),
        flagged_of_negatives=sum(risk >= flag_at for risk in calm) / len(calm),
        feasible_flags=guarantees.feasible_flags(share, alpha if error is None else error),
        auroc=curves.auroc(risks, truth),
        calibration_error=curves.calibration_error(risks, truth),
    )


def lowered(flag_at: float, risks: Sequence[float], positive: Sequence[bool]) -> float:
    """A threshold that flags no further negative of these answers and misses fewer positives, halfway between
    the two. A lower threshold can only miss less, so that what was promised of `flag_at` holds for it.
    """
    pairs = list(zip(risks, positive, strict=True))
    below = max((risk for risk, bad in pairs if not bad and risk < flag_at), default=0.0)
    above = min((risk for risk, bad in pairs if bad and below < risk <= flag_at), default=flag_at)
    return (below + above) / 2


def clear_threshold(risks: Sequence[float], flag_at: float, probes: float) -> float:
    """The lowest clear_below, at most flag_at, with which these answers take at most `probes` cells on
    average. Raises ConfigError for fewer than one.
    """
    for at in (*sorted({risk for risk in risks if 0.0 < risk < flag_at}), flag_at):
        if expected_probes(risks, at, flag_at) <= probes + 1e-12:
            return at
    raise ConfigError(f"{probes:g} probes a request cannot be reached: the first one is always asked.")


def expected_probes(risks: Sequence[float], clear_below: float, flag_at: float) -> float:
    """Cells asked a request on average: the first one, which clears and flags, and the others in between; all
    of them without an early stop (clear_below of 0).
    """
    if not clear_below:
        return float(len(CELLS))
    return 1.0 + (len(CELLS) - 1) * sum(clear_below <= risk < flag_at for risk in risks) / len(risks)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file, with the digest of its content."""
    content = calibration.model_dump(mode="json")
    document = {**content, "sha256": _digest(content)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file. Raises ConfigError where it cannot be read, is of another format, or does
    not fit its digest.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read ({type(exc).__name__}): name a calibration file.") from exc
    except json.JSONDecodeError as exc:
        raise ConfigError(
            f"{path} is no JSON (line {exc.lineno}): run `modint-guard calibrate` again."
        ) from exc
    if not isinstance(document, dict) or document.get("format") != SCHEMA:
        raise ConfigError(f"{path} is no calibration of the format {SCHEMA}: make it with this version.")
    digest = document.pop("sha256", None)
    if digest != _digest(document):
        raise ConfigError(f"{path} does not fit its digest: it was damaged or edited; calibrate again.")
    try:
        return Calibration.model_validate(document)
    except ValidationError as exc:
        where = ".".join(str(part) for part in exc.errors()[0]["loc"])
        raise ConfigError(f"{path} is not valid at `{where}`: run `modint-guard calibrate` again.") from exc


def check_for(
    calibration: Calibration, path: Path, *, models: Mapping[str, str | None], probes: Sequence[str]
) -> None:
    """Raise ConfigError unless the model is served, with that adapter, and these probes run.

    models: every served name with the base it belongs to, None for a base.
    """
    name, base = calibration.served_name, calibration.model
    fits = name in models and (models[name] == base if calibration.adapter else models[name] is None)
    if not fits:
        made_for = f"{base} with the adapter {name}" if calibration.adapter else base
        served = ", ".join(sorted(models)) or "nothing"
        raise ConfigError(f"{path} was made for {made_for}, and served are {served}: calibrate this model.")
    if missing := [probe for probe in calibration.probes if probe not in probes]:
        raise ConfigError(f"{path} needs the probe {missing[0]}, which does not run here: calibrate again.")


def halves(answers: Sequence[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Answers that count, by source: those the risk is fitted on and those the threshold is set on."""
    counted = [answer for answer in answers if answer.counts]
    sources = sorted({answer.source for answer in counted})
    seeded("calibrate", seed).shuffle(sources)
    fitting = set(sources[: round(len(sources) * FITTED_SHARE)])
    return [a for a in counted if a.source in fitting], [a for a in counted if a.source not in fitting]


def _check_classes(answers: Sequence[Labelled]) -> None:
    positives = sum(answer.positive for answer in answers)
    if not positives or positives == len(answers):
        raise ConfigError(
            f"of {len(answers)} answers in one half {positives} are positive (wrong under interference, right"
            " on the clean twin): both kinds are needed in each half; label more items"
        )


def _error_promise(
    risks: Sequence[float], wrong: Sequence[bool], error: float, delta: float, at_most: float
) -> Promise:
    tested = guarantees.error_threshold(risks, wrong, alpha=error, delta=delta, at_most=at_most)
    if tested is None:
        raise ConfigError(
            f"no threshold keeps the error among unflagged answers at {error:g} with confidence"
            f" {1 - delta:g}: {len(risks)} answers are too few, or too many of them wrong; label more, or"
            " allow more errors"
        )
    return Promise(kind="error", alpha=error, delta=delta, flag_at=tested.flag_at, n=tested.n)


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
