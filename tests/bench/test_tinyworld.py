"""The table of TinyWorld and the default thresholds: which cells there are, and what a row counts."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.base import base_notes, base_table, collect_base
from bench.thresholds import (
    FITTED_ON,
    GRID,
    GuessSample,
    RiskSample,
    choose_confident,
    choose_flag_at,
    constants,
    fit,
    guessed_of_right,
    outcomes,
)
from bench.tinyworld import side_by_side, table_rows, tinyworld_notes
from modint_guard.data.item import FAMILIES, reply_for
from modint_guard.data.perturb import REGISTRY, applicable
from modint_guard.errors import ConfigError
from modint_guard.evaluation.runner import Row
from modint_training.tinyworld.conditions import Condition, every_condition

ROOT = Path(__file__).parents[2]
KEYS = (
    "model",
    "family",
    "perturbation",
    "held_out",
    "task",
    "form",
    "n",
    "accuracy",
    "ci_low",
    "ci_high",
    "flagged_rate",
)


def test_the_table_has_every_family_clean_and_under_all_that_fits_it() -> None:
    cells = [
        (cell.family, cell.perturbation)
        for cell in every_condition()
        if not (cell.held_out_wording or cell.self_ask)
    ]
    for family in FAMILIES:
        names = {kind.name for kind in applicable(family)}
        assert {name for mine, name in cells if mine == family} - {"clean"} == names
    assert ("text-heavy", "no_image") in cells and ("text-heavy", "clean") not in cells
    assert len(cells) == len(set(cells)) == 6 + 9 + 1


@pytest.mark.parametrize(
    ("perturbation", "wording", "said"),
    [
        ("clean", False, "no"),
        ("misleading_description", False, "no"),
        ("ocr_noise", False, "perturbation"),
        ("neutral_text", False, "no"),
        ("misleading_description", True, "wording"),
    ],
)
def test_a_cell_says_what_no_training_has_seen(perturbation: str, wording: bool, said: str) -> None:
    assert Condition("image-heavy", perturbation, wording).held_out == said


def test_a_cells_items_are_of_the_test_split_and_under_its_perturbation() -> None:
    items = Condition("image-heavy", "misleading_description", True).items("test", 8, seed=3)
    assert len(items) == 8
    for item in items:
        assert item.id.startswith("test-3-held-out-")
        assert (item.perturbation, item.held_out_wording) == ("misleading_description", True)


def test_rows_count_all_items_each_form_and_each_sub_task() -> None:
    cell = Condition("image-heavy", "misleading_description", False)
    items = cell.items("test", 8)
    assert [item.form for item in items] == ["word"] * 4 + ["letter"] * 4
    found = [
        Row(
            item,
            "base",
            reply_for(item, item.answer if index < 5 else item.wrong),
            right=index < 5,
            modint={"verdict": "flagged" if index >= 6 else "pass"},
        )
        for index, item in enumerate(items)
    ]
    rows: list[dict[str, Any]] = list(table_rows("base", cell, found))
    assert {tuple(row) for row in rows} == {KEYS}
    assert [(row["task"], row["form"], row["n"], row["accuracy"], row["flagged_rate"]) for row in rows] == [
        ("all", "all", 8, 0.625, 0.25),
        ("all", "word", 4, 1.0, 0.0),
        ("all", "letter", 4, 0.25, 0.5),
        ("digit", "all", 2, 1.0, 0.0),
        ("shape", "all", 2, 0.5, 0.0),
        ("colour", "all", 2, 0.5, 0.5),
        ("count", "all", 2, 0.5, 0.5),
    ]
    for row in rows:
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"]
    assert {row["held_out"] for row in rows} == {"no"}


# The base by seed


def _without_seed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seed"} for row in rows]


def record(tmp_path: Path, seed: int, **recipe: Any) -> Path:
    settings = {"name": "tinyworld-base", "lr": 0.1, "seed": seed, **recipe}
    written = {"recipe": settings, "seed": seed, "data_sha256": "abc", "test": _without_seed(BASE_ROWS)}
    path = tmp_path / f"{seed}-{len(recipe)}.json"
    path.write_text(json.dumps(written), "utf-8")
    return path


def test_the_bases_figures_of_all_seeds_stand_in_one_table(tmp_path: Path) -> None:
    output = tmp_path / "base.json"
    collect_base(output, [record(tmp_path, 0), record(tmp_path, 1)])
    table = json.loads(output.read_text("utf-8"))
    assert table["seeds"] == [0, 1]
    assert table["rows"] == [{**row, "seed": seed} for seed in (0, 1) for row in BASE_ROWS]
    page = output.with_suffix(".md").read_text("utf-8")
    assert "| vqa | 0.900 | 0.900 |" in page
    assert "| 1 | no | all | all | vqa | clean | 0.900 |" in page


def test_a_record_of_another_recipe_or_of_a_seed_that_is_there_is_refused(tmp_path: Path) -> None:
    first, other = record(tmp_path, 0), record(tmp_path, 1, lr=0.2)
    with pytest.raises(ConfigError, match=r"1-1\.json was made by another recipe or other data"):
        collect_base(tmp_path / "base.json", [first, other])
    with pytest.raises(ConfigError, match="two records of one seed"):
        collect_base(tmp_path / "base.json", [first, first])
    assert not (tmp_path / "base.json").exists()


def base_row(family: str, perturbation: str, accuracy: float, **more: Any) -> dict[str, Any]:
    whole = {"seed": 0, "held_out": "no", "task": "all", "form": "all"}
    return {**whole, "family": family, "perturbation": perturbation, "accuracy": accuracy, **more}


BASE_ROWS = [
    base_row("image-heavy", "clean", 0.99),
    base_row("image-heavy", "clean", 0.5, form="letter"),
    base_row("image-heavy", "clean", 0.4, held_out="wording"),
    base_row("image-heavy", "misleading_description", 0.1),
    base_row("text-heavy", "no_image", 0.98),
    base_row("text-heavy", "contradicting_image", 0.75),
    base_row("text-heavy", "contradicting_image", 0.6, task="ordering"),
    base_row("vqa", "clean", 0.9),
    base_row("vqa", "clean", 0.85, task="is_colour"),
    base_row("vqa", "clean", 0.8, task="self_ask"),
]


def test_the_page_shows_the_base_by_seed_and_what_a_contradicting_picture_costs() -> None:
    second = [{**row, "seed": 1, "accuracy": row["accuracy"] / 2} for row in BASE_ROWS]
    assert base_table([*BASE_ROWS, *second]).splitlines() == [
        "| asked | seed 0 | seed 1 |",
        "| --- | --- | --- |",
        "| image-heavy | 0.990 | 0.495 |",
        "| text-heavy | 0.980 | 0.490 |",
        "| vqa | 0.900 | 0.450 |",
        "| the weakest sub-task | 0.850 | 0.425 |",
        "| whether the picture is needed | 0.800 | 0.400 |",
        "| image-heavy under a lying caption | 0.100 | 0.050 |",
        "| text-heavy beside a contradicting picture | 0.750 | 0.375 |",
        "| … that is lost by it | 0.230 | 0.115 |",
        "| … ordering | 0.600 | 0.300 |",
    ]


def test_the_models_stand_side_by_side_in_one_row_for_each_condition() -> None:
    row: dict[str, Any] = {
        "family": "vqa",
        "perturbation": "clean",
        "held_out": "no",
        "form": "all",
        "task": "all",
    }
    base = {
        **row,
        "model": "tinyworld-base",
        "accuracy": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "flagged_rate": 0.3,
    }
    lora = {
        **row,
        "model": "robust-lora",
        "accuracy": 0.9,
        "ci_low": 0.8,
        "ci_high": 1.0,
        "flagged_rate": 0.1,
    }
    a_form = {**base, "form": "word", "accuracy": 0.1}
    assert side_by_side([base, a_form, lora]).splitlines() == [
        "| family | perturbation | held out | tinyworld-base | robust-lora | tinyworld-base flagged "
        "| robust-lora flagged |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| vqa | clean | no | 0.500 [0.400, 0.600] | 0.900 [0.800, 1.000] | 0.300 | 0.100 |",
    ]


@pytest.mark.parametrize(("name", "notes"), [("tinyworld", tinyworld_notes), ("base", base_notes)])
def test_the_committed_page_shows_the_committed_rows_in_short(
    name: str, notes: Callable[[Sequence[Mapping[str, Any]]], str]
) -> None:
    table = ROOT / "bench" / "results" / f"{name}.json"
    rows = json.loads(table.read_text("utf-8"))["rows"]
    assert f"\n\n{notes(rows)}\n\n" in table.with_suffix(".md").read_text("utf-8")


# Default thresholds


def sample(divergence: float, *, wrong: bool, flip: bool = True) -> RiskSample:
    return RiskSample(divergence=divergence, margin=0.0, flip=flip, wrong=wrong)


SAMPLES = [sample(0.9, wrong=True)] * 20 + [sample(0.1, wrong=False)] * 20


def test_thresholds_are_chosen_on_nothing_that_is_held_out() -> None:
    for family, name in FITTED_ON:
        kind = REGISTRY[name]
        assert kind.role != "held_out"
        assert kind in applicable(family)


def test_a_risk_fitted_to_divergence_tells_wrong_from_right_where_the_view_flips() -> None:
    model = fit(SAMPLES)
    fitted = constants(model, 0.5)
    assert set(fitted) == {"bias", "weight_js", "weight_margin", "flag_at"}
    # Symmetric samples: the risk is one half in the middle.
    assert fitted["bias"] + 0.5 * fitted["weight_js"] == pytest.approx(0, abs=0.01)
    assert (fitted["weight_margin"], fitted["flag_at"]) == (pytest.approx(0, abs=1e-6), 0.5)
    seen = [*SAMPLES, sample(0.9, wrong=True, flip=False), sample(0.8, wrong=False)]
    assert outcomes(model, seen, 0.5) == {
        "wrong": 21,
        "flagged_of_wrong": pytest.approx(20 / 21),
        "flagged_of_right": pytest.approx(1 / 21),
    }


@pytest.mark.parametrize("wrong", [False, True])
def test_no_risk_is_fitted_where_there_is_nothing_to_tell_apart(wrong: bool) -> None:
    with pytest.raises(ConfigError, match="3 answers, all right or all wrong: no risk can be fitted"):
        fit([sample(0.9, wrong=wrong)] * 3)


@pytest.mark.parametrize("wrong", [False, True])
def test_shares_of_nothing_are_nought(wrong: bool) -> None:
    shares = outcomes(fit(SAMPLES), [sample(0.9, wrong=wrong)], 0.5)
    assert shares["flagged_of_right" if wrong else "flagged_of_wrong"] == 0.0
    assert not any(np.isnan(value) for value in shares.values())


def test_the_threshold_is_the_lowest_that_spares_right_answers() -> None:
    model = fit(SAMPLES)  # the risk is 1/2 at a divergence of 0.5 and grows with it
    risky_but_right = [*SAMPLES, *[sample(0.45, wrong=False)] * 2]  # 2 of 22 right answers is too many
    chosen = choose_flag_at(model, risky_but_right)
    below = GRID[GRID.index(chosen) - 1]
    assert outcomes(model, risky_but_right, chosen)["flagged_of_right"] == 0.0
    assert outcomes(model, risky_but_right, below)["flagged_of_right"] == pytest.approx(2 / 22)


def test_without_such_a_threshold_the_strictest_is_taken() -> None:
    hopeless = [*SAMPLES, *[sample(2.0, wrong=False)] * 20]
    assert choose_flag_at(fit(SAMPLES), hopeless) == GRID[-1]


def test_the_risk_never_falls_as_the_answer_moves_further() -> None:
    apart = [
        RiskSample(0.9, 0.9, True, False),
        RiskSample(0.1, 0.8, True, True),
    ] * 20  # the divergence misleads here
    near = [RiskSample(0.5, -0.9, False, False)] * 20
    assert constants(fit([*apart, *near]), 0.5)["weight_js"] == 0.0


def test_an_answer_is_called_a_guess_where_hardly_any_right_one_would_be() -> None:
    sure = [GuessSample(0.9995, wrong=False)] * 2
    unsure = [GuessSample(0.5, wrong=False)] * 198
    assert choose_confident([*sure, *unsure]) == 0.9  # 2 of 200 are 1 %
    assert choose_confident([*sure, *unsure[2:]]) == 0.9999  # 2 of 198 are more
    assert choose_confident([GuessSample(1.0, wrong=False)]) == 0.99999
    assert guessed_of_right([GuessSample(0.95, wrong=True), GuessSample(0.95, wrong=False)], 0.9) == 1.0
    assert guessed_of_right([], 0.9) == 0.0
