"""The ablation: trained in one go, taken up where it stopped, measured in one go."""

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.ablation import measure as ablation
from bench.ablation.measure import (
    MAX_BYTES,
    RECIPES,
    check_size,
    measure_ablation,
    missing_of,
    models_in,
    train_ablation,
)
from bench.ablation.table import (
    COMPONENTS,
    GROUPS,
    MARGIN,
    MeasuredModel,
    clean_of,
    gains_of,
    goal_rows,
    notes,
    rows_of,
    summary,
    table_conditions,
    verdict,
    verdict_lines,
)
from modint_guard.data.item import reply_for
from modint_guard.data.perturb import REGISTRY
from modint_guard.errors import ConfigError
from modint_guard.evaluation.effects import Answered, sources
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import load_recipe
from modint_training.tinyworld.conditions import Condition
from tests.training.small import save_small_base

SHORT = ("rank=2", "steps=1", "batch=8", "evaluate_steps=1", "evaluate_items=2", "precision=fp32")
TWO = ("tinyworld-sft", "tinyworld-aug")
Answers = dict[Condition, list[Answered]]


@pytest.fixture(scope="module")
def home(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base, and beside it two ablations of one seed."""
    folder = tmp_path_factory.mktemp("ablation")
    save_small_base(processor, folder / "base")
    (folder / "base" / "run.json").write_text('{"recipe": {"name": "tinyworld-base"}, "seed": 0}')
    assert [made for _, made in train(folder)] == [True, True]
    return folder


def train(folder: Path, *overrides: str) -> list[tuple[Path, bool]]:
    wanted = (*SHORT, f"base={folder / 'base'}", *overrides)
    return list(
        train_ablation(
            folder / "adapters",
            folder / "runs",
            recipes=TWO,
            seeds=(0,),
            overrides=wanted,
            card_items=1,
        )
    )


def test_every_recipe_of_the_ablation_has_one_budget_and_one_shape() -> None:
    compared = {name for _, without, with_ in COMPONENTS for name in (without, with_)}
    recipes = [load_recipe(name).model_dump() for name in sorted(compared)]
    for key in ("base", "steps", "batch", "rank", "alpha", "targets", "letter", "lr", "save_dtype", "scope"):
        assert len({str(recipe[key]) for recipe in recipes}) == 1, key
    for key in ("adam_beta2", "adam_epsilon", "weight_decay", "warmup_ratio", "max_grad_norm", "quotas"):
        assert len({str(recipe[key]) for recipe in recipes}) == 1, key
    assert (recipes[0]["rank"], recipes[0]["save_dtype"]) == (8, "bf16")
    assert set(RECIPES) <= compared


def test_an_ablation_is_saved_in_bf16_with_its_record(home: Path) -> None:
    folder = home / "adapters" / "tinyworld-aug-seed0"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    record = json.loads((folder / "run.json").read_text())
    assert (record["recipe"]["name"], record["seed"]) == ("tinyworld-aug", 0)
    assert len(record["base_revision"]) == 12
    assert not list((home / "runs").glob("*/*"))  # checkpoints of finished runs are not kept


def test_what_is_there_is_left_as_it_is(home: Path) -> None:
    files = [home / "adapters" / f"{name}-seed0" / "adapter_model.safetensors" for name in TWO]
    before = [file.stat().st_mtime_ns for file in files]
    assert [made for _, made in train(home)] == [False, False]
    assert [file.stat().st_mtime_ns for file in files] == before


def test_an_adapter_of_another_recipe_or_of_another_base_is_not_what_is_wanted(
    home: Path, tmp_path: Path
) -> None:
    aug = home / "adapters" / "tinyworld-aug-seed0"
    recipe = load_recipe("tinyworld-aug", ["seed=0", *SHORT, f"base={home / 'base'}"])
    assert isinstance(recipe, TuneRecipe)
    assert ablation.is_current(aug, recipe)
    assert not ablation.is_current(aug, recipe.model_copy(update={"lr": 0.5}))
    assert not ablation.is_current(tmp_path, recipe)
    record = json.loads((aug / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "base_revision": "0" * 12}))
    assert not ablation.is_current(tmp_path, recipe)


def test_weights_that_are_too_large_to_commit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(bytes(MAX_BYTES))
    check_size(tmp_path)
    file.write_bytes(bytes(MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=r"314573 bytes of weights, more than 314572: lower its rank"):
        check_size(tmp_path)


# The table


def test_the_table_has_base_and_ablations_under_every_condition_and_their_cost(
    home: Path, tmp_path: Path
) -> None:
    output = tmp_path / "ablation.json"
    measure_ablation(output, home / "adapters", count=4, seed=0, base=str(home / "base"), shipped=None)
    rows = json.loads(output.read_text())["rows"]
    assert list(dict.fromkeys(row["name"] for row in rows)) == ["tinyworld-base", *TWO]
    for name in ("tinyworld-base", *TWO):
        mine = [row for row in rows if row["name"] == name]
        assert len(mine) == len(table_conditions()) + 1
        assert [row["perturbation"] for row in mine][-1] == "cost"
        assert all(0 <= row["accuracy"] <= 1 and row["n"] == 4 for row in mine[:-1])
        clean = [row["js"] for row in mine[:-1] if row["perturbation"] in ("clean", "no_image")]
        assert clean == [None] * 6
        assert all(row["js"] >= 0 for row in mine[:-1] if row["perturbation"] not in ("clean", "no_image"))
    costs = [row for row in rows if row["perturbation"] == "cost"]
    assert [row["steps"] for row in costs] == [None, 1, 1]
    assert [row["train_seconds"] is None for row in costs] == [True, False, False]  # the base's is no tuning
    said = output.with_suffix(".md").read_text()
    assert "| perturbed twins (+AUG) | tinyworld-sft | tinyworld-aug | trained |" in said
    assert "- perturbed twins (+AUG) (tinyworld-sft → tinyworld-aug): " in said
    assert "there was no adapter: tinyworld-sft-seed1, tinyworld-sft-seed2, tinyworld-aug-seed1," in said


def test_the_table_says_which_adapters_are_missing() -> None:
    there = [made(name, seed, 0)[0] for name in RECIPES for seed in (0, 1, 2)]
    assert missing_of(there) == []
    assert missing_of(there[1:]) == ["tinyworld-sft-seed0"]
    one, answers = made("tinyworld-sft", 0, 0)
    said = {key: notes([one], {one.key: answers}, missing=key) for key in ((), ("tinyworld-aug-seed1",))}
    assert ["Not measured" in each for each in said.values()] == [False, True]


def test_an_adapter_in_the_table_answers_as_it_does_alone(home: Path, processor: Any) -> None:
    from peft import PeftModel

    from modint_training.loop.predict import first_logits
    from modint_training.models.loading import load_base

    measured = models_in(home / "adapters", home / "base", None)
    net = ablation.with_adapters(load_base(str(home / "base"))[0], measured)
    items = Condition("vqa", "clean").items("test", 2)
    for each in measured[1:]:
        net.set_adapter(each.key)
        alone = PeftModel.from_pretrained(load_base(str(home / "base"))[0], each.folder)
        assert torch.equal(first_logits(net, processor, items), first_logits(alone, processor, items))
    with net.disable_adapter():
        bare = load_base(str(home / "base"))[0]
        assert torch.equal(first_logits(net, processor, items), first_logits(bare, processor, items))


def test_a_table_of_nothing_or_of_another_base_is_refused(home: Path, tmp_path: Path, processor: Any) -> None:
    with pytest.raises(ConfigError, match="holds no adapters: train them first, `make bench-train-ablation`"):
        models_in(tmp_path, home / "base", None)
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="was trained on other weights of the base"):
        models_in(home / "adapters", tmp_path / "other", None)


def test_a_table_of_adapters_of_different_steps_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "adapters", tmp_path / "adapters")
    file = tmp_path / "adapters" / "tinyworld-aug-seed0" / "run.json"
    record = json.loads(file.read_text())
    record["recipe"]["steps"] += 1
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="holds adapters of different steps: train them again"):
        models_in(tmp_path / "adapters", home / "base", None)


def test_every_condition_is_compared_with_its_clean_one_in_the_same_wordings() -> None:
    cells = table_conditions()
    assert all(clean_of(cell) in cells[: cells.index(cell) + 1] for cell in cells)
    assert clean_of(Condition("text-heavy", "black", True)) == Condition("text-heavy", "no_image", True)


def test_a_condition_counts_to_the_groups_that_its_kind_and_wording_say() -> None:
    def groups(*cell: Any) -> list[str]:
        return [name for name, is_in in GROUPS.items() if is_in(Condition(*cell))]

    assert all(groups(cell.family, cell.perturbation, cell.held_out_wording) for cell in table_conditions())
    assert groups("image-heavy", "clean") == groups("text-heavy", "no_image") == ["clean"]
    assert groups("image-heavy", "misleading_description") == ["trained", "misleading_description"]
    assert groups("text-heavy", "contradicting_image") == ["trained", "contradicting_image"]
    assert groups("text-heavy", "noise") == ["trained"]
    assert (groups("text-heavy", "white"), groups("text-heavy", "grey")) == (["held out"], ["control"])
    assert groups("vqa", "clean") == ["vqa"]
    assert groups("vqa", "clean", True) == groups("text-heavy", "no_image", True) == ["wording"]
    assert groups("image-heavy", "misleading_description", True) == ["wording, disturbed"]
    assert {kind.role for kind in REGISTRY.values()} == {"trained", "held_out", "control"}


def made(name: str, seed: int, lies: int) -> tuple[MeasuredModel, dict[Condition, list[Answered]]]:
    """Ten image-heavy items: all right when clean, `lies` of them wrong under a lie."""
    cell = Condition("image-heavy", "misleading_description")
    found = {}
    for each, wrong in ((clean_of(cell), 0), (cell, lies)):
        items = each.items("test", 10)
        found[each] = [
            Answered(item, reply_for(item, item.wrong if index < wrong else item.answer))
            for index, item in enumerate(items)
        ]
    record = {"train_seconds": 60, "recipe": {"steps": 600}}
    return MeasuredModel(name, seed, Path("nowhere"), record), found


def test_rows_tell_flips_and_cost(tmp_path: Path) -> None:
    each, found = made("tinyworld-aug", 1, lies=3)
    each = replace(each, folder=tmp_path)
    (tmp_path / "adapter_config.json").touch()  # else it is the base
    clean, lied, cost = rows_of(each, found)
    assert clean.keys() == lied.keys() == cost.keys()
    assert (clean["accuracy"], clean["harmful_flip"]) == (1.0, None)
    assert (lied["accuracy"], lied["harmful_flip"], lied["change"]) == (0.7, 0.3, pytest.approx(-0.3))
    assert (cost["train_seconds"], cost["steps"], cost["accuracy"]) == (60, 600, None)


def test_a_component_is_judged_by_its_interval_and_every_seed() -> None:
    runs = [made("tinyworld-sft", seed, lies=9) for seed in (0, 1)]
    runs += [made("tinyworld-aug", seed, lies=seed) for seed in (0, 1)]
    measured, found = [each for each, _ in runs], {each.key: answers for each, answers in runs}
    gains = {gain["group"]: gain for gain in gains_of(measured, found)}
    assert list(gains) == ["clean", "trained", "misleading_description"]  # of which alone there are answers
    helped = gains["trained"]
    assert helped["gain"] == pytest.approx((9 + 8) / 20)
    assert (helped["gain_least"], helped["gain_most"]) == pytest.approx((0.8, 0.9))
    assert [gain["verdict"] for gain in gains.values()] == ["no difference shown", "helps", "helps"]
    assert list(verdict_lines(list(gains.values()))) == [
        "perturbed twins (+AUG) (tinyworld-sft → tinyworld-aug): helps trained (+0.850), "
        "misleading_description (+0.850); no difference shown in 1 of 3 groups"
    ]
    by_name = {row["name"]: row for row in summary(measured, found)}
    assert by_name["tinyworld-sft"]["harmful flips, trained"] == 0.9
    assert by_name["tinyworld-aug"]["trained"] == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("low", "high", "least", "most", "said"),
    [
        (0.01, 0.03, MARGIN, 0.03, "helps"),
        (0.01, 0.03, MARGIN - 1e-6, 0.03, "no difference shown"),  # one seed gains too little
        (-0.01, 0.03, MARGIN, 0.03, "no difference shown"),  # the interval holds 0
        (-0.03, -0.01, -0.03, -MARGIN, "harms"),
        (-0.03, -0.01, -0.03, 0.0, "no difference shown"),  # one seed loses nothing
        (-0.03, 0.01, -0.03, -MARGIN, "no difference shown"),
    ],
)
def test_to_help_or_to_harm_takes_the_interval_and_every_seed(
    low: float, high: float, least: float, most: float, said: str
) -> None:
    gain = {"gain_low": low, "gain_high": high, "gain_least": least, "gain_most": most}
    assert verdict({**gain, "seeds": 2}) == said
    assert verdict({**gain, "seeds": 1}) == "no difference shown"  # one run shows nothing


# The goals of the shipped adapter, of a hundred items a condition


def answers_of(*conditions: tuple[Condition, Collection[int]]) -> Answers:
    """Answers of which those at the given places are wrong."""
    return {
        cell: [
            Answered(item, reply_for(item, item.wrong if place in wrong else item.answer))
            for place, item in enumerate(cell.items("test", 100))
        ]
        for cell, wrong in conditions
    }


@pytest.fixture(scope="module")
def of_base() -> Answers:
    return answers_of((Condition("vqa", "clean"), {0}), (Condition("vqa", "clean", True), {0}))


@pytest.fixture(scope="module")
def of_adapter() -> Answers:
    return answers_of(
        (Condition("image-heavy", "clean"), {0}),
        (Condition("image-heavy", "misleading_description"), {1, 2}),  # one that was wrong is right
        (Condition("image-heavy", "neutral_text"), range(50)),  # a control, of no goal
        (Condition("image-heavy", "ocr_noise"), range(4)),
        (Condition("text-heavy", "no_image"), ()),
        (Condition("text-heavy", "noise"), ()),
        (Condition("text-heavy", "white"), {0}),
        (Condition("image-heavy", "clean", True), range(4)),
        (Condition("image-heavy", "misleading_description", True), range(8)),
        (Condition("vqa", "clean"), {1}),
        (Condition("vqa", "clean", True), {0, 1}),
    )


def test_each_goal_is_decided_by_its_worst_condition(of_base: Answers, of_adapter: Answers) -> None:
    keys = ("worst", "value", "bar", "verdict")
    assert [tuple(row[key] for key in keys) for row in goal_rows(of_adapter, of_base)] == [
        ("image-heavy/misleading_description", -0.01, -0.01, "met"),  # 98 - 99 of 100
        ("image-heavy/ocr_noise", -0.03, -0.03, "met"),  # 96 - 99
        ("image-heavy/misleading_description/held-out wording", -0.04, -0.03, "missed"),  # 92 - 96
        ("image-heavy/clean/held-out wording", -0.03, -0.03, "met"),  # 96 - 99, of other items
        ("image-heavy/misleading_description/held-out wording", 0.04, 0.02, "missed"),  # 4 turned wrong
        ("vqa/clean/held-out wording", -0.01, 0.0, "missed"),  # 98 - 99 of the base
    ]


def test_a_goal_has_an_interval_where_the_items_are_the_same(of_base: Answers, of_adapter: Answers) -> None:
    rows = goal_rows(of_adapter, of_base)
    assert [row["ci_low"] is None for row in rows] == [False, False, False, True, False, False]
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows if row["ci_low"] is not None)
    *_, vqa = goal_rows(of_base, of_base)
    digits = len(set(sources(of_base[Condition("vqa", "clean")])))
    bound = 1 - 0.05 ** (1 / digits)  # where no answer differs
    assert (vqa["value"], vqa["verdict"]) == (0.0, "met")
    assert (vqa["ci_low"], vqa["ci_high"]) == pytest.approx((-bound, bound))


def test_too_many_harmful_flips_miss_their_goal_and_what_was_not_asked_meets_none() -> None:
    own = answers_of(
        (Condition("text-heavy", "no_image"), ()),
        (Condition("text-heavy", "black"), {0}),
        (Condition("text-heavy", "noise"), {0, 1, 2}),
    )
    verdicts = [(row["worst"], row["value"], row["verdict"]) for row in goal_rows(own, {})]
    assert verdicts == [
        ("text-heavy/noise", -0.03, "missed"),
        *[(None, None, "not measured")] * 3,
        ("text-heavy/noise", 0.03, "missed"),
        (None, None, "not measured"),
    ]


def test_the_goals_stand_above_the_table_where_the_shipped_adapter_is_in_it() -> None:
    base, own = made("tinyworld-base", 0, lies=9), made("robust-lora", 0, lies=1)
    both = [base[0], own[0]]
    found = {each.key: answers for each, answers in (base, own)}
    said = notes(both, found)
    assert said.index("## The goals of robust-lora") < said.index("## By group")
    assert "| image-heavy/misleading_description | 10 | -0.100 |" in said  # and not the base's
    assert "The goals" not in notes(both[:1], found)
