"""PCGrad: gradients by hand, a loss that carries a gradient of our own, and a step that takes it."""

import random
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from modint_guard.errors import ConfigError
from modint_training.method.pcgrad import cosines, gradients_of, projected, with_gradient
from modint_training.method.step import StepMeter, log_line, twin_loss
from modint_training.models.loading import lora_config
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import load_recipe
from modint_training.tune import check_balance
from tests.training.small import lora_recipe, small_model, tinyworld_batches

RNG = random.Random(0)


def vectors(*values: tuple[float, ...]) -> list[Tensor]:
    return [torch.tensor(each) for each in values]


def test_the_worked_example_of_two_gradients() -> None:
    kept = projected(vectors((1.0, 0.0), (-1.0, 1.0)), RNG)
    assert [each.tolist() for each in kept] == [[0.5, 0.5], [0.0, 1.0]]


def test_gradients_that_agree_stay_as_they_are() -> None:
    given = vectors((1.0, 0.0), (1.0, 1.0), (0.0, 2.0))
    assert all(torch.equal(after, before) for after, before in zip(projected(given, RNG), given, strict=True))


def test_a_weight_is_the_terms_own() -> None:
    first, second = vectors((1.0, 0.0), (-1.0, 1.0))
    kept = projected([first, 10 * second], RNG)
    assert [each.tolist() for each in kept] == [[0.5, 0.5], [0.0, 10.0]]


def test_a_gradient_of_nought_changes_nothing() -> None:
    kept = projected(vectors((1.0, 0.0), (0.0, 0.0)), RNG)
    assert [each.tolist() for each in kept] == [[1.0, 0.0], [0.0, 0.0]]


def test_each_gradient_ends_without_conflict_with_the_last_one_that_it_met() -> None:
    generator = torch.Generator().manual_seed(0)
    given = list(torch.randn(2, 6, generator=generator))
    given[1] -= 3 * given[0]
    for after, other in zip(projected(given, RNG), reversed(given), strict=True):
        assert float(after @ other) == pytest.approx(0, abs=1e-4)


def test_a_loss_carries_the_gradient_that_it_is_given() -> None:
    model = nn.Linear(2, 1)
    loss = with_gradient(torch.tensor(7.0), model, torch.tensor([1.0, 2.0, 3.0]))
    loss.backward()
    assert loss.item() == 7.0
    assert (model.weight.grad.tolist(), model.bias.grad.tolist()) == ([[1.0, 2.0]], [3.0])


def test_the_gradients_of_two_terms_add_up_to_that_of_their_sum() -> None:
    model = nn.Linear(2, 1)
    output = model(torch.tensor([1.0, -1.0])).sum()
    found = gradients_of(model, {"a": output, "b": output**2, "none": torch.zeros(())})
    assert list(found) == ["a", "b"]  # what no parameter reaches has no gradient
    (output + output**2).backward()
    expected = torch.cat([model.weight.grad.flatten(), model.bias.grad])
    torch.testing.assert_close(found["a"] + found["b"], expected)
    (pair,) = cosines(found).items()
    assert pair[0] == "a_b" and abs(pair[1]) == pytest.approx(1)  # both along the output's gradient


# A step


TERMS = ("sft", "adv", "cons")
PGD = "kind: pgd, step: normalised, epsilon: 0.2, relative: true, alpha: 0.2, steps: 1, mask: span, weight: 1"


def recipe_with(*overrides: str) -> TuneRecipe:
    return lora_recipe("tinyworld-base", f"attack={{{PGD}}}", *overrides)


@pytest.fixture(scope="module")
def adapted(processor: Any) -> Any:
    """A small model whose adapter has moved: twins differ, so that consistency has a gradient."""
    model = get_peft_model(small_model(processor), lora_config(recipe_with(), "llava"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def step(adapted: Any, processor: Any, *overrides: str) -> tuple[dict[str, float], Tensor]:
    """The figures of one step, and the gradient that it leaves."""
    recipe, meter = recipe_with(*overrides), StepMeter()
    adapted.zero_grad()
    twin_loss(recipe, meter)(adapted, tinyworld_batches(recipe, processor)(0)[0]).backward()
    gradients = [each.grad.flatten() for each in adapted.parameters() if each.requires_grad]
    return log_line(meter.take()), torch.cat(gradients)


def test_a_step_has_the_same_loss_and_the_gradient_of_terms_without_conflict(
    adapted: Any, processor: Any
) -> None:
    weights = ("task_weight", "attack.weight", "consistency_weight")
    each = [step(adapted, processor, *(f"{name}={int(name == on)}" for name in weights))[1] for on in weights]
    plain, summed = step(adapted, processor, "consistency_weight=1")
    balanced, kept = step(adapted, processor, "consistency_weight=1", "balance=pcgrad")
    assert {name: balanced[name] for name in plain} == pytest.approx(plain, rel=1e-5)
    cosines_logged = {name: balanced[name] for name in balanced.keys() - plain.keys()}
    assert cosines_logged == pytest.approx(
        {f"cos_{pair}": value for pair, value in cosines(dict(zip(TERMS, each, strict=True))).items()},
        abs=1e-4,
    )
    assert min(cosines_logged.values()) < -0.5  # else nothing is shown here
    torch.testing.assert_close(summed, torch.stack(each).sum(0), rtol=1e-3, atol=1e-4)
    seed = int(tinyworld_batches(recipe_with(), processor)(0)[0].row_seeds[0])
    expected = torch.stack(projected(each, random.Random(seed))).sum(0)
    torch.testing.assert_close(kept, expected, rtol=1e-3, atol=1e-4)
    assert float((kept - summed).norm() / summed.norm()) > 0.1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("micro_batches=2",),
            "balance: pcgrad compares the gradients of whole batches: use micro_batches: 1",
        ),
        (("consistency=none", "attack=null"), "there is L_sft alone: use balance: sum"),
    ],
)
def test_a_recipe_that_pcgrad_cannot_balance_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe("tinyworld-pcgrad", overrides)


def test_pcgrad_in_several_processes_is_refused() -> None:
    check_balance(recipe_with("balance=pcgrad"), 1)
    with pytest.raises(ConfigError, match="2 processes share them out: train in one process"):
        check_balance(recipe_with("balance=pcgrad"), 2)
