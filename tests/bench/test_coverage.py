"""The promised miss rate on real answers: drawn anew some hundred times from the scores that
`make bench-calibration` wrote through the real engine.

Half of the sources calibrate, the other half are new answers; over the draws the mean share of positives that
are missed must not exceed alpha. Held-out wordings are outside of the promise, and no claim is made of them.
A draw with too few positives for the promise is refused, as `calibrate` refuses a user's, and drawn anew.
"""

import math
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import pytest

from bench.calibrations import fit_model, outcome, read_scores, weights_of
from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError
from modint_guard.evaluation.fit_calibration import calibrate
from modint_guard.judging.calibration import CALIBRATION, Labelled, read_calibration
from modint_guard.models import ADAPTER, BASE, bundled
from tests.bench.scores import SCORES

RESAMPLES = 500
REFUSED = 500  # draws that may be refused
ALPHA = 0.1
HELD = {
    model: read_calibration(file)
    for model in (BASE, ADAPTER)
    if (file := bundled(model) / CALIBRATION).exists()  # none for an adapter that hardly errs
}


def drawn(answers: list[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Two halves of the sources."""
    sources = sorted({answer.source for answer in answers})
    seeded("coverage", seed).shuffle(sources)
    first = set(sources[: len(sources) // 2])
    return [a for a in answers if a.source in first], [a for a in answers if a.source not in first]


def miss_rates(pooled: list[Labelled]) -> Iterator[float]:
    """Of one draw after the other, as long as few enough are refused."""
    refused = 0
    for seed in count():
        known, new = drawn(pooled, seed)
        try:
            fitted = calibrate(known, alpha=ALPHA, seed=seed)
        except ConfigError:
            refused += 1
            assert refused <= REFUSED
            continue
        rate = outcome(fitted, new)["miss_rate"]
        assert rate is not None
        yield rate


@pytest.mark.slow
@pytest.mark.parametrize(
    # Another model errs too rarely: of half of its positives half would be left to set a threshold by.
    ("model", "relevant"),
    [(BASE, relevant) for relevant in HELD[BASE].fitted],
)
def test_the_miss_rate_is_kept_over_resamples_of_real_scores(model: str, relevant: str) -> None:
    pooled = [
        answer
        for scored in read_scores(SCORES)
        if scored.model == model and scored.part in ("validation", "test")
        for answer in scored.answers[relevant]
    ]
    missed = list(islice(miss_rates(pooled), RESAMPLES))
    noise = 3 * np.std(missed) / math.sqrt(RESAMPLES)
    assert np.mean(missed) <= ALPHA + noise


def test_the_base_is_calibrated_for_both_modalities() -> None:
    assert set(HELD[BASE].fitted) == {"image", "text"}


@pytest.mark.parametrize("model", HELD)
def test_the_bundled_calibration_is_of_these_scores_and_of_these_weights(model: str) -> None:
    held = HELD[model]
    assert held.versions["weights"] == weights_of(bundled(model))
    alpha = next(iter(held.fitted.values())).promises[0].alpha
    again = fit_model(read_scores(SCORES), model, alpha=alpha, probes=1.6, seed=0).fitted
    assert set(again) == set(held.fitted)
    for relevant, was in held.fitted.items():
        found = again[relevant]
        assert (found.positives, found.negatives) == (was.positives, was.negatives)
        assert (found.bias, found.flag_at) == pytest.approx((was.bias, was.flag_at), abs=1e-6)
