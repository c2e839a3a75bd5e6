"""Calibrations: a risk and a threshold with a guarantee, fitted to labelled answers, and their files.

A file belongs to one model, one adapter and the probes that its risks are computed from, and it holds a
digest of its own content. It is refused if it is damaged, edited, or made for another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modint_guard.errors import ConfigError
from modint_guard.judging.risk import Logistic
from modint_guard.types import CELLS, Relevant

SCHEMA = "modint-calibration-1"
CALIBRATION = "calibration.json"  # beside a model's weights: `serve` uses it if no other file is named


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer under interference: its features, and whether it and its clean twin were right.

    source: names what several questions share (a bitmap, a passage). All answers of one source are used
    either for the fit or for the threshold, never for both.
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
        """Whether the answer is used: if its clean twin is wrong too, it says nothing about interference."""
        return self.right_when_clean


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Promise(_Record):
    """A guarantee on a threshold, and the number of answers that it rests on.

    kind: "miss" bounds the share of interfered answers that are not flagged, on average over calibrations;
    "error" bounds the share of wrong answers among those that are not flagged. alpha: the bound. delta: the
    probability with which an "error" bound may fail; None for "miss".
    """

    kind: Literal["miss", "error"]
    alpha: float = Field(gt=0, lt=1)
    delta: float | None = Field(default=None, gt=0, lt=1)
    flag_at: float = Field(ge=0, le=1)
    n: int = Field(ge=1, description="positives for a miss rate, unflagged answers for an error")


class Fitted(_Record):
    """Risk and threshold for requests that one modality ought to decide, with figures of the fit.

    expected_probes: the mean number of cells that an early stop asks. feasible_flags: the smallest share of
    answers that even a perfect risk would have to flag. flagged_of_negatives: the share of right answers that
    are flagged.
    """

    bias: float
    weights: dict[str, float]
    flag_at: float = Field(ge=0, le=1)
    clear_below: float = Field(default=0.0, ge=0, le=1, description="passes by the first view; 0: none does")
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
        """The risk of an answer, in [0, 1]. Raises KeyError if one of its features is missing."""
        return Logistic(self.bias, self.weights).risk(dict(answer.features))


class Calibration(_Record):
    """The content of a calibration file.

    fitted: by the modality that ought to decide. probes: the views that risks are computed from. command,
    versions: how and with what it was made.
    """

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
        """The model name of the requests that it is for."""
        return self.adapter or self.model

    def fitted_for(self, relevant: Relevant) -> Fitted | None:
        """What was fitted for requests that this modality ought to decide; None if nothing was."""
        return {Relevant(name): fit for name, fit in self.fitted.items()}.get(relevant)

    def stops_early(self, relevant: Relevant) -> bool:
        """Whether the first view may settle requests with this relevance; for `both`, whether it may settle
        those of either modality.
        """
        return any(
            fit.clear_below > 0.0 for name, fit in self.fitted.items() if relevant in (name, Relevant.BOTH)
        )


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file. Raises ConfigError if the file cannot be read, is of another format, or does
    not match its digest.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read ({type(exc).__name__}): name a calibration file.") from exc
    except json.JSONDecodeError as exc:
        raise ConfigError(
            f"{path} is not valid JSON (line {exc.lineno}): run `modint-guard calibrate` again."
        ) from exc
    if not isinstance(document, dict) or document.get("format") != SCHEMA:
        raise ConfigError(f"{path} is not a calibration of the format {SCHEMA}: make it with this version.")
    digest = document.pop("sha256", None)
    if digest != content_digest(document):
        raise ConfigError(f"{path} does not match its digest: it was damaged or edited; calibrate again.")
    try:
        return Calibration.model_validate(document)
    except ValidationError as exc:
        where = ".".join(str(part) for part in exc.errors()[0]["loc"])
        raise ConfigError(f"{path} is not valid at `{where}`: run `modint-guard calibrate` again.") from exc


def check_for(
    calibration: Calibration, path: Path, *, models: Mapping[str, str | None], probes: Sequence[str]
) -> None:
    """Raises ConfigError unless the calibration's model is served, with its adapter, and its probes run.

    path: the calibration's file, for the message. models: the base model of every served name, None for a
    base model itself. probes: the names of the probes that run.
    """
    name, base = calibration.served_name, calibration.model
    is_served = name in models and (models[name] == base if calibration.adapter else models[name] is None)
    if not is_served:
        made_for = f"{base} with the adapter {name}" if calibration.adapter else base
        served = ", ".join(sorted(models)) or "nothing"
        raise ConfigError(
            f"{path} was made for {made_for}, but these are served: {served}; calibrate the served model."
        )
    if missing := [probe for probe in calibration.probes if probe not in probes]:
        raise ConfigError(f"{path} needs the probe {missing[0]}, which does not run here: calibrate again.")


def content_digest(content: Mapping[str, object]) -> str:
    """SHA-256 of a calibration file's content, its own digest left out, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
