"""What ships keeps its promises: sizes, where the weights came from, and the figures of the tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.ablation.measure import ADAPTERS, MAX_SECONDS, RECIPES, SEEDS, check_size, is_current
from modint_guard.models import ADAPTER, BASE, bundled
from modint_training.picturebook.recipe import PicturebookRecipe
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import load_recipe
from modint_training.world import data_digest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
shipped = pytest.mark.parametrize("name", [BASE, ADAPTER])


def rows(table: str) -> list[dict[str, Any]]:
    return list(json.loads((RESULTS / f"{table}.json").read_text("utf-8"))["rows"])


def row(model: str, family: str, perturbation: str) -> dict[str, Any]:
    """The figures of both forms together, in trained wordings."""
    (found,) = (
        row
        for row in rows("tinyworld")
        if (row["model"], row["family"], row["perturbation"], row["form"], row["task"])
        == (model, family, perturbation, "all", "all")
        and row["held_out"] != "wording"
    )
    assert found["n"] >= 400
    return found


def accuracy(model: str, family: str, perturbation: str) -> float:
    return float(row(model, family, perturbation)["accuracy"])


@pytest.mark.parametrize(("name", "limit"), [(BASE, 15e6), (ADAPTER, 2e6)])
def test_the_weights_are_one_small_file(name: str, limit: float) -> None:
    (weights,) = bundled(name).glob("*.safetensors")
    assert weights.stat().st_size <= limit
    assert (bundled(name) / "README.md").is_file()


@shipped
def test_the_weights_were_made_by_the_recipe_and_the_data_that_ship_with_them(name: str) -> None:
    run = json.loads((bundled(name) / "run.json").read_text("utf-8"))
    recipe = load_recipe(name)
    assert not isinstance(recipe, PicturebookRecipe)
    made = type(recipe).model_validate(run["recipe"])  # a key that came later had its default then
    # Into how many parts a step is cut does not change what is learnt, and a GPU needs no parts.
    assert made.model_copy(update={"micro_batches": recipe.micro_batches}) == recipe
    assert run["data_sha256"] == data_digest("tinyworld")


def test_every_ablation_is_committed_is_small_and_kept_its_budget() -> None:
    folders = sorted(path.parent for path in (ROOT / ADAPTERS).glob("*/run.json"))
    assert {folder.name for folder in folders} == {f"{name}-seed{seed}" for name in RECIPES for seed in SEEDS}
    for folder in folders:
        check_size(folder)
        run = json.loads((folder / "run.json").read_text("utf-8"))
        recipe = load_recipe(run["recipe"]["name"], [f"seed={run['seed']}"])
        assert isinstance(recipe, TuneRecipe) and is_current(folder, recipe)
        assert run["train_seconds"] <= MAX_SECONDS
        assert folder.name == f"{recipe.name}-seed{recipe.seed}"


@pytest.mark.parametrize(
    ("family", "perturbation", "least"),
    [("image-heavy", "clean", 0.85), ("text-heavy", "no_image", 0.95), ("vqa", "clean", 0.80)],
)
def test_the_base_knows_its_world(family: str, perturbation: str, least: float) -> None:
    assert accuracy(BASE, family, perturbation) >= least


def test_the_base_falls_for_lies_and_for_pictures_that_contradict() -> None:
    assert accuracy(BASE, "image-heavy", "misleading_description") <= 0.40
    clean, shown = (row(BASE, "text-heavy", name) for name in ("no_image", "contradicting_image"))
    assert shown["ci_high"] < clean["ci_low"]


def test_the_adapter_cures_the_base_of_lies_and_costs_it_little() -> None:
    # A floor under wrong weights and wrong tables, which any adapter that cures passes. The goals themselves,
    # with what was reached, stand in bench/results/ablation.md (`ablation.goal_rows`): they may be missed.
    assert accuracy(ADAPTER, "image-heavy", "misleading_description") >= 0.70
    for family, perturbation in (("image-heavy", "clean"), ("text-heavy", "no_image"), ("vqa", "clean")):
        lost = accuracy(BASE, family, perturbation) - accuracy(ADAPTER, family, perturbation)
        assert lost <= 0.03, family
