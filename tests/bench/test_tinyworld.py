"""The table of TinyWorld: which cells there are, and what a row counts."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.base import base_notes, base_table, collect_base
from bench.tinyworld import side_by_side, table_rows, tinyworld_notes
from modint_guard.data.item import FAMILIES, reply_for
from modint_guard.data.perturb import applicable
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
