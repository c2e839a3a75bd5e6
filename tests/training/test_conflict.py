"""Gradient conflict: cosines by hand, a null that is honest, and a training that does not notice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from modint_guard.errors import ConfigError
from modint_training.data.batches import batch_of, step_examples
from modint_training.loop.conflict import LOG, conflict_records, conflict_summary
from modint_training.loop.plots import draw_conflict
from modint_training.loop.trainer import append_lines
from modint_training.method.conflict import (
    Conflict,
    GradientSums,
    blocks_of,
    conflict_of,
    cosine,
    magnitude_similarity,
    row_losses,
    summary_of,
)
from modint_training.models.loading import lora_config
from modint_training.recipe_files import load_recipe
from modint_training.runs import export_run, run_recipe
from modint_training.tinyworld.source import training_source
from modint_training.tune import tune
from tests.training.small import lora_recipe, save_small_base, small_model

MEASURED = "conflict={steps: 1, batches: 1}"
ONE_BLOCK = "model.language_model.layers.0.self_attn.q_proj"


# By hand


def test_the_worked_example_of_two_gradients() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert cosine(first, second) == pytest.approx(-0.7071, abs=1e-4)
    assert magnitude_similarity(first, second) == pytest.approx(0.9428, abs=1e-4)
    assert cosine(first, torch.zeros(2)) is None
    assert magnitude_similarity(torch.zeros(2), torch.zeros(2)) is None


def noisy(pull: float, generator: torch.Generator, *, step: int, block: str) -> Conflict:
    """A block whose kinds of rows pull by 1 and by `pull` in one direction, and at random in 19 others."""
    pulls = torch.zeros(2, 3, 20)
    pulls[0, :, 0], pulls[1, :, 0] = 1.0, pull
    noise = torch.randn(2, 2, 20, generator=generator) * 0.1
    sides = pulls + torch.cat([noise, noise.mean(1, keepdim=True)], dim=1)
    return conflict_of(step, "twins", block, list(sides[0]), list(sides[1]))


def test_a_block_that_is_pulled_apart_is_told_from_one_that_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    records = [
        noisy(pull, generator, step=step, block=block)
        for step in range(20)
        for block, pull in (("apart", -1.0), ("together", 1.0))
    ]
    blocks = summary_of(records)["twins"]["blocks"]
    assert blocks["apart"]["rate"] == 1.0
    assert blocks["apart"]["cosine"] == pytest.approx(-0.9, abs=0.1)
    assert blocks["together"]["rate"] == pytest.approx(0.05, abs=0.1)
    assert blocks["together"]["cosine"] == pytest.approx(0.9, abs=0.1)


def test_two_kinds_that_are_one_show_as_much_conflict_as_the_null_says() -> None:
    generator = torch.Generator().manual_seed(0)
    records = [noisy(1.0, generator, step=step, block="same") for step in range(1000)]
    assert summary_of(records)["twins"]["rate"] == pytest.approx(0.05, abs=0.015)


def test_a_gradient_of_nought_is_in_no_conflict() -> None:
    nothing = [torch.zeros(3)] * 3
    record = conflict_of(1, "twins", "still", nothing, [torch.ones(3)] * 3)
    assert (record["cosine"], record["halves"], record["null"]) == (None, [], [1.0])
    assert summary_of([record]) == {}


# Gradients of a model


@pytest.fixture(scope="module")
def adapted(processor: Any) -> Any:
    """A small model whose adapter has moved: with B at nought A has no gradient."""
    model = get_peft_model(small_model(processor), lora_config(lora_recipe("tinyworld-base"), "llava"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def test_a_block_is_a_and_b_of_one_module(adapted: Any) -> None:
    blocks = blocks_of(adapted)
    assert len(blocks) == 7
    assert [tuple(each.shape) for each in blocks[ONE_BLOCK]] == [(2, 32), (32, 2)]


def test_the_kinds_gradients_add_up_to_that_of_all_rows(adapted: Any, processor: Any) -> None:
    recipe = lora_recipe("tinyworld-base", "quotas=[1, 1, 0]")
    examples = step_examples(recipe, training_source(recipe))(0)
    whole = batch_of(examples, processor, recipe)
    row_losses(adapted, whole).sum().backward()
    expected = {
        name: torch.cat([each.grad.flatten() for each in of]) for name, of in blocks_of(adapted).items()
    }
    sums = GradientSums(adapted)
    for number, example in enumerate(examples):
        sums.add(example.family, number % 2, batch_of([example], processor, recipe))
    places = dict(sums._places())
    assert sum(float(rows) for rows in sums.rows.values()) == len(whole.labels) == 16
    total = torch.stack(list(sums.sums.values())).sum(0)
    for name, gradient in expected.items():
        torch.testing.assert_close(total[places[name]], gradient, rtol=1e-4, atol=1e-6)
    after = {name: torch.cat([each.grad.flatten() for each in of]) for name, of in blocks_of(adapted).items()}
    assert all(torch.equal(after[name], expected[name]) for name in expected)  # the training's own: untouched


def test_a_long_answer_counts_no_more_than_a_letter(adapted: Any, processor: Any) -> None:
    recipe = lora_recipe("tinyworld-base", "letter=0.0", "quotas=[0, 0, 1]")
    batch = batch_of(step_examples(recipe, training_source(recipe))(0)[:1], processor, recipe)
    logits = adapted(**batch.inputs, use_cache=False).logits
    where = (batch.labels[0] != -100).nonzero().flatten()
    assert len(where) == 2  # the answer and the end
    each = torch.nn.functional.cross_entropy(logits[0, where - 1], batch.labels[0, where], reduction="none")
    assert row_losses(adapted, batch).tolist() == pytest.approx([each.mean().item()], rel=1e-5)


# A run


@pytest.fixture(scope="module")
def base(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_base(processor, tmp_path_factory.mktemp("small") / "base")


SETTINGS = ("lr=0.05", "dropout=0.1", "evaluate_steps=9")


@pytest.fixture(scope="module")
def measured(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The weights of a measured run of two steps, and its folder."""
    run = tmp_path_factory.mktemp("runs") / "robust-lora"
    return tune(lora_recipe(base, *SETTINGS, MEASURED), run).model.state_dict(), run


def test_a_measured_run_is_the_unmeasured_one_bit_for_bit(
    base: Path, measured: tuple[Any, Path], tmp_path: Path
) -> None:
    weights = tune(lora_recipe(base, *SETTINGS), tmp_path).model.state_dict()
    assert all(torch.equal(weights[name], measured[0][name]) for name in weights)
    assert not (tmp_path / LOG).exists()


def test_each_step_has_a_line_for_each_module_and_contrast(measured: tuple[Any, Path]) -> None:
    records = conflict_records(measured[1])
    assert len(records) == 2 * 2 * 7  # steps, contrasts, modules
    assert {(record["step"], record["contrast"]) for record in records} == {
        (step, contrast) for step in (1, 2) for contrast in ("modality", "twins")
    }
    cosines = [record["cosine"] for record in records]
    assert all(value is not None and -1 <= value <= 1 for value in cosines)
    assert all(len(record["null"]) == len(record["halves"]) == 2 for record in records)
    assert (measured[1] / "conflict.png").stat().st_size > 5000


def test_a_resumed_run_measures_no_step_twice_and_its_record_sums_up_all(
    base: Path, measured: tuple[Any, Path]
) -> None:
    run = measured[1]
    # As if it had been killed after it measured step 3, of which there is no checkpoint.
    append_lines(run / LOG, [{**conflict_records(run)[0], "step": 3}])
    longer = [f"base={base}", "attack=null", "rank=2", "batch=8", "warmup_steps=1", "precision=fp32"]
    longer += ["evaluate_items=4", "steps=3", MEASURED, *SETTINGS]
    export = run_recipe("robust-lora", longer, output=None, runs=run.parent, resume="auto", test_items=1)
    assert export
    assert [record["step"] for record in conflict_records(run)] == [1] * 14 + [2] * 14 + [3] * 14
    recorded = json.loads((export / "run.json").read_text())["conflict"]
    assert recorded == conflict_summary(run)
    assert recorded["modality"]["windows"] == 3 and ONE_BLOCK in recorded["modality"]["blocks"]
    assert conflict_summary(run, until=1)["twins"]["windows"] == 1
    append_lines(run / LOG, [{**conflict_records(run)[0], "step": 4}])  # no checkpoint has seen it
    again = export_run(run, output=run / "again", test_items=1)
    assert json.loads((again / "run.json").read_text())["conflict"] == recorded


def test_a_run_that_measured_nothing_has_no_picture(tmp_path: Path) -> None:
    assert not draw_conflict(conflict_records(tmp_path), tmp_path / "conflict.png")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("conflict.steps=9", "steps=8"), "conflict.steps: is more than the run has, .*choose fewer"),
        (
            ("kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null", MEASURED),
            "conflict: compares gradients module by module of an adapter: leave it out",
        ),
        (
            (
                "quotas=[1, 0, 1]",
                "perturbations=[]",
                "controls=[]",
                "consistency=none",
                "attack=null",
                MEASURED,
            ),
            "only one kind",
        ),
        (("quotas=[0, 0, 1]", MEASURED), "only one kind"),  # vqa rows have no twins
    ],
)
def test_a_recipe_with_nothing_to_compare_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe("robust-lora", overrides)
