"""Losses of answer tokens: values worked out by hand, and the same as a numpy oracle's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from modint_training.method.losses import (
    DIVERGENCES,
    cross_entropies,
    inconsistencies,
    js_divergence,
    kl_divergence,
    reverse_kl,
    squared_distance,
    symmetric_kl,
)

LN2 = math.log(2)


def logits_of(*rows: list[float]) -> Tensor:
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows).log().clamp(min=-200)


# Task loss


def test_the_task_loss_is_the_mean_over_answer_tokens() -> None:
    logits = logits_of([0.2, 0.5, 0.3], [0.25, 0.5, 0.25])
    # (-ln 0.5 - ln 0.25) / 2 = 3/2 ln 2
    losses = cross_entropies(logits, torch.tensor([1, 0]))
    assert losses.mean().item() == pytest.approx(1.5 * LN2, abs=1e-6)
    assert losses.tolist() == pytest.approx([LN2, 2 * LN2], abs=1e-6)


def test_the_task_loss_is_computed_in_float32() -> None:
    logits = torch.randn(4, 8, dtype=torch.bfloat16)
    assert cross_entropies(logits, torch.tensor([5, 1, 4, 1])).dtype == torch.float32


# Divergences


def test_kl_by_hand() -> None:
    # 1/2 ln(1/2 : 1/4) + 1/2 ln(1/2 : 3/4) = 1/2 ln 2 + 1/2 ln 2/3
    kl = kl_divergence(logits_of([0.5, 0.5]), logits_of([0.25, 0.75]))
    assert kl.tolist() == pytest.approx([0.5 * math.log(4 / 3)], abs=1e-6)


def test_js_by_hand() -> None:
    # P = (1, 0), Q = (1/2, 1/2), M = (3/4, 1/4): 1/2 ln 4/3 + 1/2 (1/2 ln 2/3 + 1/2 ln 2)
    expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(4 / 3)
    js = js_divergence(logits_of([1.0, 0.0]), logits_of([0.5, 0.5]))
    assert js.tolist() == pytest.approx([expected], abs=1e-6)


def test_js_of_disjoint_distributions_is_ln_2() -> None:
    # Defect 2 of the reference code: its "JS" is unbounded, 7.80 where the true one is 0.671.
    js = js_divergence(torch.tensor([[40.0, -40.0, -40.0]]), torch.tensor([[-40.0, 40.0, -40.0]]))
    assert js.tolist() == pytest.approx([LN2], abs=1e-6)


LOGITS = hnp.arrays(np.float32, (3, 5), elements=st.floats(-30, 30, width=32))


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.asarray((p * (np.log(p) - np.log(q))).sum(axis=1))


@given(LOGITS, LOGITS)
def test_divergences_equal_their_definition(clean: np.ndarray, twin: np.ndarray) -> None:
    p, q = softmax(clean), softmax(twin)
    m = (p + q) / 2
    js = js_divergence(torch.from_numpy(clean), torch.from_numpy(twin)).numpy()
    kl = kl_divergence(torch.from_numpy(clean), torch.from_numpy(twin)).numpy()
    np.testing.assert_allclose(js, (relative_entropy(p, m) + relative_entropy(q, m)) / 2, atol=1e-5)
    np.testing.assert_allclose(kl, relative_entropy(p, q), atol=2e-5, rtol=1e-5)
    both = symmetric_kl(torch.from_numpy(clean), torch.from_numpy(twin)).numpy()
    np.testing.assert_allclose(
        both, (relative_entropy(p, q) + relative_entropy(q, p)) / 2, atol=2e-5, rtol=1e-5
    )
    assert (js >= -1e-6).all() and (js <= LN2 + 1e-6).all()


def test_the_reverse_kl_is_that_of_the_twin_from_the_clean_row() -> None:
    clean, twin = logits_of([1 / 4, 3 / 4]), logits_of([1 / 2, 1 / 2])
    by_hand = math.log(2) / 2 + math.log(2 / 3) / 2
    assert reverse_kl(clean, twin).item() == pytest.approx(by_hand, rel=1e-6)
    # As the reference code of the paper calls it.
    theirs = torch.nn.functional.kl_div(clean.log_softmax(-1), twin.softmax(-1), reduction="sum")
    assert theirs.item() == pytest.approx(by_hand, rel=1e-6)
    assert kl_divergence(clean, twin).item() != pytest.approx(by_hand, rel=1e-2)


@pytest.mark.parametrize("kind", DIVERGENCES)
@given(logits=LOGITS)
def test_a_distribution_does_not_diverge_from_itself(kind: str, logits: np.ndarray) -> None:
    tensor = torch.from_numpy(logits)
    assert DIVERGENCES[kind](tensor, tensor.clone()).abs().max().item() < 1e-6


# Hidden states


def test_the_squared_distance_is_a_mean_over_the_width() -> None:
    # (1^2 + 2^2 + 0 + 0) / 4
    states = squared_distance(torch.tensor([[1.0, 2.0, 0.0, 3.0]]), torch.tensor([[0.0, 0.0, 0.0, 3.0]]))
    assert states.tolist() == [1.25]


# Options


def test_temperature_divides_both_sides() -> None:
    clean, twin = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    hot = inconsistencies(clean, twin, "js", temperature=2.0)
    assert hot.tolist() == js_divergence(clean / 2, twin / 2).tolist()
    assert inconsistencies(clean, twin, "js", temperature=1e3).item() < 1e-5


@pytest.mark.parametrize("kind", [*DIVERGENCES, "mse"])
def test_the_clean_side_is_a_constant_unless_the_recipe_says_otherwise(kind: str) -> None:
    clean, twin = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    inconsistencies(clean, twin, kind).sum().backward()
    assert clean.grad is None
    assert twin.grad is not None and twin.grad.abs().sum() > 0
    inconsistencies(clean, twin, kind, stop_gradient="none").sum().backward()
    assert clean.grad is not None and clean.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [*DIVERGENCES, "mse"])
def test_half_precision_is_raised_to_float32(kind: str) -> None:
    clean, twin = (torch.randn(4, 6, dtype=torch.bfloat16) for _ in range(2))
    assert inconsistencies(clean, twin, kind).dtype == torch.float32
