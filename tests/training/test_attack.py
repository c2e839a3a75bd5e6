"""Attacks: inside the ball, under the mask, up the objective, and without a trace on the model."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modint_training.method.attack import Attack, ascend, project, row_size, run_attack, start, token_scale
from modint_training.method.passes import Outputs
from modint_training.recipe import AttackKind, StepKind

PGD = Attack("pgd", "normalised", epsilon=0.5, relative=False, alpha=0.2, steps=2)
KINDS: tuple[AttackKind, ...] = ("pgd", "freelb", "smart", "gaussian")
STEPS: tuple[StepKind, ...] = ("raw", "normalised", "sign")
MASK = torch.tensor([[False, True, True, False], [True, False, False, False]])
EMBEDS = torch.linspace(-2, 2, 2 * 4 * 3).view(2, 4, 3)
SEEDS = [11, 12]


def linear(slope: Tensor) -> Callable[[Tensor], Outputs]:
    """A decoder whose one logit a row is the embeddings times a slope."""
    return lambda embeds: Outputs(embeds, (embeds * slope).sum((1, 2)).unsqueeze(-1))


def objective(outputs: Outputs) -> Tensor:
    return outputs.logits.sum()


def attacked(how: Attack, *, slope: Tensor | None = None, mask: Tensor = MASK) -> Any:
    slope = torch.arange(24.0).view(2, 4, 3) - 7 if slope is None else slope
    return run_attack(linear(slope), objective, EMBEDS, mask, SEEDS, how)


# Ball and mask

attacks = st.builds(
    Attack,
    kind=st.sampled_from(KINDS),
    step=st.sampled_from(STEPS),
    epsilon=st.floats(1e-4, 10),
    relative=st.booleans(),
    alpha=st.floats(1e-4, 100),
    steps=st.integers(1, 3),
)


@given(attacks, st.lists(st.booleans(), min_size=8, max_size=8))
def test_delta_is_zero_outside_the_mask_and_stays_in_the_ball(how: Attack, cells: list[bool]) -> None:
    how = replace(how, steps=0) if how.kind == "gaussian" else how
    mask = torch.tensor(cells).view(2, 4)
    delta = attacked(how, mask=mask).delta
    assert delta.dtype == torch.float32
    assert (delta[~mask] == 0).all()
    unit = token_scale(EMBEDS) if how.relative else torch.ones(2, 4, 1)
    z = delta / unit.clamp_min(1e-12)
    if how.kind == "freelb":
        assert (row_size(z, mask) <= how.epsilon * (1 + 1e-5)).all()
    else:
        assert (z.abs() <= how.epsilon * (1 + 1e-5)).all()


def test_uniform_starts_fill_the_ball() -> None:
    z = start(torch.ones(1, 500, dtype=torch.bool), 8, [0], PGD)
    assert z.abs().max() == pytest.approx(0.5, abs=0.01)
    assert z.mean().abs() < 0.02 and z.std() == pytest.approx(1 / math.sqrt(12), abs=0.01)  # of width 1


def test_gaussian_noise_has_the_size_of_epsilon_before_it_is_cut() -> None:
    z = start(torch.ones(1, 500, dtype=torch.bool), 8, [0], replace(PGD, kind="gaussian"))
    assert (z.abs() < 0.5).float().mean() == pytest.approx(0.683, abs=0.02)  # within one standard deviation


def test_a_rows_start_depends_on_its_seed_and_its_own_tokens_alone() -> None:
    both = start(MASK, 3, SEEDS, PGD)
    wider = torch.cat([torch.zeros(2, 5, dtype=torch.bool), MASK], dim=1)  # another padding
    assert torch.equal(start(MASK[1:], 3, SEEDS[1:], PGD)[0], both[1])
    assert torch.equal(start(wider, 3, SEEDS, PGD)[:, 5:], both)
    assert not torch.equal(start(MASK, 3, [11, 13], PGD)[1], both[1])


# Steps


def stepped(step: StepKind, gradient: list[float], alpha: float = 0.25) -> list[float]:
    """Where a step from nought leads, in a ball that is large enough."""
    how = replace(PGD, step=step, alpha=alpha, epsilon=1e6)
    z, skipped = ascend(torch.zeros(1, 1, 2), torch.tensor([[gradient]]), torch.ones(1, 1).bool(), how)
    assert skipped == 0
    return cast(list[float], z.flatten().tolist())


def test_a_raw_step_is_alpha_times_the_gradient() -> None:
    assert stepped("raw", [4.0, -2.0]) == [1.0, -0.5]


def test_a_normalised_step_has_alpha_as_its_root_mean_square() -> None:
    # (3, 4) has the root mean square sqrt(12.5)
    expected = [0.25 * 3 / math.sqrt(12.5), 0.25 * 4 / math.sqrt(12.5)]
    assert stepped("normalised", [3.0, 4.0]) == pytest.approx(expected)
    assert stepped("normalised", [3e-30, 4e-30]) == pytest.approx(expected)
    assert stepped("normalised", [3e30, 4e30]) == pytest.approx(expected)


def test_a_sign_step_is_alpha_in_every_element() -> None:
    assert stepped("sign", [1e-9, -5.0]) == [0.25, -0.25]


@pytest.mark.parametrize("step", STEPS)
def test_without_a_gradient_nothing_moves(step: StepKind) -> None:
    assert stepped(step, [0.0, 0.0]) == [0.0, 0.0]


def test_the_ball_of_freelb_is_round() -> None:
    how = replace(PGD, kind="freelb", epsilon=1.0)
    # (3, 4): root mean square sqrt(12.5), brought down to 1; a smaller one stays as it is
    z = project(torch.tensor([[[3.0, 4.0]]]), torch.ones(1, 1).bool(), how)
    assert z.flatten().tolist() == pytest.approx([3 / math.sqrt(12.5), 4 / math.sqrt(12.5)])
    assert project(torch.tensor([[[0.3, 0.4]]]), torch.ones(1, 1).bool(), how).flatten().tolist() == [
        pytest.approx(0.3),
        pytest.approx(0.4),
    ]


def test_relative_noise_is_in_units_of_each_tokens_root_mean_square() -> None:
    how = replace(PGD, step="sign", relative=True, epsilon=0.1, alpha=100.0, steps=1)
    slope = torch.ones(2, 4, 3)
    delta = attacked(how, slope=slope).delta
    expected = 0.1 * EMBEDS.square().mean(-1, keepdim=True).sqrt().expand(2, 4, 3)
    assert torch.allclose(delta[MASK], expected[MASK])


@pytest.mark.parametrize("kind", ["pgd", "freelb"])
@pytest.mark.parametrize("step", STEPS)
def test_the_attack_does_more_harm_than_its_start(kind: AttackKind, step: StepKind) -> None:
    slope = torch.arange(24.0).view(2, 4, 3) - 7
    how = replace(PGD, kind=kind, step=step, alpha=0.05, steps=3)
    begun = EMBEDS + start(MASK, 3, SEEDS, how)
    assert objective(linear(slope)(EMBEDS + attacked(how).delta)) > objective(linear(slope)(begun))


def test_enough_steps_reach_the_worst_corner_of_the_ball() -> None:
    slope = torch.arange(24.0).view(2, 4, 3) - 7.5
    delta = attacked(replace(PGD, step="sign", steps=6), slope=slope).delta
    assert torch.allclose(delta[MASK], 0.5 * slope.sign()[MASK])


def test_a_rows_noise_does_not_depend_on_the_rows_beside_it() -> None:
    # Defect 6 of the reference code: the loss was a mean over the batch: the larger, the smaller each step.
    how = replace(PGD, step="raw", alpha=1e-3)
    slope = torch.arange(24.0).view(2, 4, 3) - 7
    both = run_attack(linear(slope), objective, EMBEDS, MASK, SEEDS, how).delta
    alone = run_attack(linear(slope[1:]), objective, EMBEDS[1:], MASK[1:], SEEDS[1:], how).delta
    assert torch.allclose(both[1], alone[0])


# What counts, and what is left alone


def test_pgd_gives_one_pass_and_freelb_one_a_step() -> None:
    assert len(attacked(replace(PGD, steps=3)).passes) == 1
    assert len(attacked(replace(PGD, kind="freelb", steps=3)).passes) == 3
    assert len(attacked(replace(PGD, kind="gaussian", steps=0)).passes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_passes_that_count_carry_gradients_to_the_parameters_and_the_attack_leaves_none(
    kind: AttackKind,
) -> None:
    slope = torch.ones(2, 4, 3, requires_grad=True)
    frozen = torch.ones(2, 4, 3)
    calls: list[bool] = []

    def forward(embeds: Tensor) -> Outputs:
        calls.append(slope.requires_grad and not frozen.requires_grad)
        return Outputs(embeds, (embeds * slope * frozen).sum((1, 2)).unsqueeze(-1))

    how = replace(PGD, kind=kind, steps=0 if kind == "gaussian" else 2)
    found = run_attack(forward, objective, EMBEDS, MASK, SEEDS, how)
    assert slope.grad is None and all(calls)
    sum(objective(each) for each in found.passes).backward()
    assert slope.grad is not None and slope.grad.abs().sum() > 0
    assert not found.delta.requires_grad or kind == "freelb"


def test_rows_whose_gradient_is_not_finite_stay_where_they_are_and_are_counted() -> None:
    how = replace(PGD, steps=2)
    slope = torch.ones(2, 4, 3)
    slope[0, 1, 0] = math.inf
    found = attacked(how, slope=slope)
    assert found.skipped == 2  # one row, two steps
    assert torch.equal(found.delta[0], start(MASK, 3, SEEDS, how)[0])
    assert not torch.equal(found.delta[1], start(MASK, 3, SEEDS, how)[1])
    assert found.delta.isfinite().all()


def test_delta_survives_embeddings_in_bf16() -> None:
    # Defect 6 of the reference code: in bf16 an epsilon of 1e-3 vanishes where |x| >= 0.5.
    embeds = torch.full((2, 4, 3), 0.75, dtype=torch.bfloat16)
    how = replace(PGD, epsilon=1e-3, alpha=1e-3)
    seen: list[Tensor] = []

    def forward(given: Tensor) -> Outputs:
        seen.append(given.detach())
        return Outputs(given, given.sum((1, 2)).unsqueeze(-1))

    run_attack(forward, objective, embeds, MASK, SEEDS, how)
    assert (embeds + torch.tensor(9e-4, dtype=torch.bfloat16) == embeds).all()
    assert all((given[MASK] != 0.75).all() and (given[~MASK] == 0.75).all() for given in seen)
