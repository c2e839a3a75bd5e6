"""The bundled calibrations: which answers they are fitted to, what is written, and figures by hand."""

import json
from pathlib import Path

import pytest

from bench.calibrations import (
    LIES,
    PARTS,
    ModelFits,
    ScoredAnswers,
    fit_model,
    outcome,
    read_scores,
    rows,
    twins,
    weights_of,
    write_scores,
)
from modint_guard.data.perturb import REGISTRY
from modint_guard.judging.calibration import CALIBRATION, Labelled
from modint_guard.models import BASE, bundled
from tests.bench.scores import SCORES
from tests.core.test_calibration import answers, made

FITTED = made().fitted["image"]  # sigmoid(4 js - 1), flagged from 0.2 on: js of about -0.1 and more


def test_a_calibration_sees_nothing_that_is_held_out() -> None:
    seen = twins("validation", 2, 0)
    kinds = [twin.disturbed.perturbation for twin in seen]
    assert all(REGISTRY[name].role != "held_out" for name in kinds)
    # Each of four items of a family once under a lie and once under another kind, which take turns.
    assert [kinds.count(name) for name in LIES] == [4, 4]
    assert {"unrelated_facts", "neutral_text", "true_description"} <= set(kinds)
    assert {"noise", "black", "grey", "agreeing_image"} <= set(kinds) and len(kinds) == 16
    assert all(twin.disturbed.id.startswith("validation-0-trained") for twin in seen)


def test_held_out_kinds_and_wordings_are_parts_of_their_own() -> None:
    kinds = {twin.disturbed.perturbation for twin in twins("held_out_kind", 3, 0)}
    assert kinds == {name for name, kind in REGISTRY.items() if kind.role == "held_out"}
    worded = twins("held_out_wording", 2, 0)
    assert all(twin.disturbed.held_out_wording and twin.clean.held_out_wording for twin in worded)
    assert all(t.disturbed.id.startswith("test-") for part in PARTS[1:] for t in twins(part, 1, 0))


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    exact = [Labelled({"js": 0.25, "margin": -0.5}, False, True, "digit:3")]
    found = [ScoredAnswers("m", "validation", {"image": exact}), ScoredAnswers("m", "test", {"text": exact})]
    write_scores(tmp_path / "scores.jsonl", found)
    assert read_scores(tmp_path / "scores.jsonl") == found
    (first, _) = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert json.loads(first)["source"] == "digit:3"


def test_what_a_threshold_keeps_by_hand() -> None:
    def one(js: float, *, right: bool, clean: bool = True) -> Labelled:
        return Labelled({"js": js, "margin": 0.0, "entropy": 0.0, "pmi": 0.0}, right, clean, "s")

    given = [
        *[one(0.5, right=False), one(0.1, right=False), one(-1.0, right=False)],  # two of three flagged
        *[one(0.3, right=True), one(-0.5, right=True), one(-0.9, right=True)],  # one of three flagged
        *[one(0.9, right=False, clean=False), one(0.9, right=True, clean=False)],
    ]
    assert outcome(FITTED, given) == {
        "positives": 3,
        "negatives": 3,
        "wrong_on_both": 1,
        "miss_rate": pytest.approx(1 / 3),
        "flagged_of_negatives": pytest.approx(1 / 3),
        "error": pytest.approx(1 / 3),  # the miss among three that passed
        "probes": 3.0,  # no early stop there
    }
    assert outcome(FITTED, [])["miss_rate"] is None
    early = FITTED.model_copy(update={"flag_at": 0.45, "clear_below": 0.2})
    assert outcome(early, given)["probes"] == pytest.approx(1 + 2 * 1 / 6)  # sigmoid(-0.6) = 0.35 goes on
    assert outcome(None, given) == {
        **{"positives": 3, "negatives": 3, "wrong_on_both": 1},
        **dict.fromkeys(("miss_rate", "flagged_of_negatives", "error", "probes")),
    }


def test_a_row_for_every_part_and_modality() -> None:
    found = [ScoredAnswers("m", part, {"image": answers(200, seed=n)}) for n, part in enumerate(PARTS)]
    fits = {"m": fit_model(found, "m", alpha=0.1, probes=1.6, seed=0)}
    table = list(rows(found, fits))
    assert [row["part"] for row in table] == list(PARTS)
    assert len({tuple(row) for row in table}) == 1
    assert all(row["miss_rate"] <= 0.25 and row["refused"] is None for row in table)


def test_too_few_positives_leave_that_modality_out_and_say_so() -> None:
    found = [ScoredAnswers("m", "validation", {"image": answers(200), "text": answers(20)})]
    fits = fit_model(found, "m", alpha=0.1, probes=1.6, seed=0)
    assert set(fits.fitted) == {"image"}
    assert fits.refused["text"].startswith("2 positives are too few for a miss rate of 0.2")
    image, text = rows(found, {"m": fits})
    assert image["refused"] is None and text["refused"] == fits.refused["text"]
    assert (text["flag_at"], text["miss_rate"], text["positives"]) == (None, None, 6)
    assert next(rows(found, {"m": ModelFits({}, {})}))["flag_at"] is None


def test_where_positives_are_too_few_for_the_promise_a_weaker_one_is_made() -> None:
    found = [ScoredAnswers("m", "validation", {"image": answers(40)})]
    fits = fit_model(found, "m", alpha=0.1, probes=1.6, seed=0)
    assert fits.refused == {} and fits.fitted["image"].promises[0].alpha == 0.2


def test_a_bundled_calibration_comes_with_the_scores_that_its_promise_is_tested_on() -> None:
    assert SCORES.exists() == (bundled(BASE) / CALIBRATION).exists()


def test_weights_are_told_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert weights_of(tmp_path).startswith("e3b0c44298fc1c14")  # SHA-256 of nothing
