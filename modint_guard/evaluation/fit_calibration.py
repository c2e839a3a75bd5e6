"""Fit a calibration: thresholds and risk weights for one model, from labelled answers, and their promises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError
from modint_guard.evaluation import curves, guarantees
from modint_guard.judging.calibration import Calibration, Fitted, Labelled, Promise, content_digest
from modint_guard.judging.risk import fit
from modint_guard.types import CELLS

FITTED_SHARE = 0.5  # of the question sources; the threshold is set on the others


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
    no further negative. error: if given, it is lowered instead, if need be, until at most this share of
    unflagged answers is wrong with confidence 1 - delta (learn then test). probes: if given, the first
    probe flags what reaches the threshold and clears answers as far as it takes to ask this many a request on
    average. Raises ConfigError with too few positives or without negatives, and if `error` or `probes`
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
    document = {**content, "sha256": content_digest(content)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


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
