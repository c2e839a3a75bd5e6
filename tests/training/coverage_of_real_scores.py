"""The promised miss rate on real answers: drawn anew some hundred times from the scores that
`make results-calibration` wrote.

Half of the sources calibrate, the other half are new answers; over the draws the mean share of positives that
are missed must not exceed alpha. Held-out wordings are outside of the promise, and no claim is made of them.
"""

import math
from pathlib import Path

import numpy as np
import pytest

from modint_guard.calibration import CALIBRATION, Labelled, calibrate, read_calibration
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.perturb import seeded
from modint_training.calibrations import fit_model, kept, read_scores, weights_of

SCORES = Path(__file__).parent / "calibration_scores.jsonl"
RESAMPLES = 500
ALPHA = 0.1


def drawn(answers: list[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Two halves of the sources."""
    sources = sorted({answer.source for answer in answers})
    seeded("coverage", seed).shuffle(sources)
    first = set(sources[: len(sources) // 2])
    return [a for a in answers if a.source in first], [a for a in answers if a.source not in first]


@pytest.mark.slow
@pytest.mark.parametrize("model", [BASE, ADAPTER])
@pytest.mark.parametrize("relevant", ["image", "text"])
def test_the_miss_rate_is_kept_over_resamples_of_real_scores(model: str, relevant: str) -> None:
    pooled = [
        answer
        for scored in read_scores(SCORES)
        if scored.model == model and scored.part in ("validation", "test")
        for answer in scored.answers[relevant]
    ]
    missed = []
    for seed in range(RESAMPLES):
        known, new = drawn(pooled, seed)
        rate = kept(calibrate(known, alpha=ALPHA, seed=seed), new)["miss_rate"]
        assert rate is not None
        missed.append(rate)
    noise = 3 * np.std(missed) / math.sqrt(RESAMPLES)
    assert np.mean(missed) <= ALPHA + noise


@pytest.mark.parametrize("model", [BASE, ADAPTER])
def test_the_bundled_calibration_is_of_these_scores_and_of_these_weights(model: str) -> None:
    held = read_calibration(bundled(model) / CALIBRATION)
    assert held.versions["weights"] == weights_of(bundled(model))
    alpha = next(iter(held.fitted.values())).promises[0].alpha
    for relevant, again in fit_model(read_scores(SCORES), model, alpha=alpha, seed=0).items():
        was = held.fitted[relevant]
        assert (again.positives, again.negatives) == (was.positives, was.negatives)
        assert (again.bias, again.flag_at) == pytest.approx((was.bias, was.flag_at), abs=1e-6)
