"""Masks and losses: read where the answer is decided, with values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from modint_training.collate import IGNORED
from modint_training.losses import CONSISTENCY, consistency_loss, js_divergence, kl_divergence, task_loss
from modint_training.masks import answer_mask, predicted, predicting_mask

LN2 = math.log(2)
# A prompt of two tokens, a one-letter answer (5), the end (1), padding.
LABELS = torch.tensor([[IGNORED, IGNORED, 5, 1, IGNORED], [IGNORED, IGNORED, IGNORED, 4, 1]])


def logits_of(*rows: list[float]) -> Tensor:
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows).log().clamp(min=-200)


# Masks


def test_the_answer_mask_covers_the_answer_and_its_end() -> None:
    assert answer_mask(LABELS).int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


def test_the_predicting_mask_is_the_answer_mask_one_to_the_left() -> None:
    assert predicting_mask(LABELS).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]


def test_the_decision_of_a_one_letter_answer_is_read() -> None:
    # Defect 1 of the reference code: it reads at t, so for the answer at position 2 it sees what position 2
    # predicts (the end) and never what position 1 predicts (the answer).
    letter = torch.tensor([[IGNORED, IGNORED, 5]])
    assert predicting_mask(letter).tolist() == [[False, True, False]]
    assert predicted(letter).tolist() == [5]


def test_masks_are_bool_and_predicted_tokens_are_in_the_order_of_their_logits() -> None:
    assert answer_mask(LABELS).dtype == predicting_mask(LABELS).dtype == torch.bool
    assert predicted(LABELS).tolist() == [5, 1, 4, 1]
    positions = torch.arange(10).reshape(2, 5)
    assert positions[predicting_mask(LABELS)].tolist() == [1, 2, 7, 8]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_each_answer_token_has_one_predicting_position(rows: list[tuple[int, int, int]]) -> None:
    length = max(map(sum, rows))
    labels = torch.full((len(rows), length), IGNORED)
    for index, (before, answer, _) in enumerate(rows):
        labels[index, before : before + answer] = torch.arange(answer) + 10
    assert predicting_mask(labels).sum(dim=1).tolist() == [answer for _, answer, _ in rows]
    assert torch.equal(labels[answer_mask(labels)], predicted(labels))


# Task loss


def test_the_task_loss_is_the_mean_over_answer_tokens() -> None:
    logits = torch.full((1, 4, 3), 50.0)  # wild numbers where no loss may look
    logits[0, 1] = logits_of([0.2, 0.5, 0.3])
    logits[0, 2] = logits_of([0.25, 0.5, 0.25])
    labels = torch.tensor([[IGNORED, IGNORED, 1, 0]])
    # (-ln 0.5 - ln 0.25) / 2 = 3/2 ln 2
    assert task_loss(logits, labels).item() == pytest.approx(1.5 * LN2, abs=1e-6)


def test_the_task_loss_does_not_count_padding_or_prompt() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 8)
    before = task_loss(logits, LABELS)
    logits[~predicting_mask(LABELS)] += 100 * torch.randn(6, 8)
    assert torch.equal(task_loss(logits, LABELS), before)


def test_losses_are_computed_in_float32() -> None:
    logits = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    clean_row = torch.tensor([-1, 0])
    assert task_loss(logits, LABELS).dtype == torch.float32
    assert consistency_loss(logits, LABELS, clean_row, "js").dtype == torch.float32


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
    assert (js >= -1e-6).all() and (js <= LN2 + 1e-6).all()


@pytest.mark.parametrize("kind", CONSISTENCY)
@given(logits=LOGITS)
def test_a_distribution_does_not_diverge_from_itself(kind: str, logits: np.ndarray) -> None:
    tensor = torch.from_numpy(logits)
    assert CONSISTENCY[kind](tensor, tensor.clone()).abs().max().item() < 1e-6


@pytest.mark.parametrize("kind", CONSISTENCY)
def test_the_clean_side_is_a_constant(kind: str) -> None:
    clean, twin = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    CONSISTENCY[kind](clean, twin).sum().backward()
    assert clean.grad is None
    assert twin.grad is not None and twin.grad.abs().sum() > 0


# Consistency between a clean row and its twins: row 0 is clean, the rows after it are its twins


def pair() -> tuple[Tensor, Tensor]:
    """Clean row and twin of other lengths; P = (1, 0) at the answer, equal at the end."""
    logits = torch.zeros(2, 5, 2)
    logits[0, 1], logits[0, 2] = logits_of([1.0, 0.0])[0], logits_of([0.5, 0.5])[0]
    logits[1, 2], logits[1, 3] = logits_of([0.5, 0.5])[0], logits_of([0.5, 0.5])[0]
    labels = torch.tensor([[IGNORED, IGNORED, 0, 1, IGNORED], [IGNORED, IGNORED, IGNORED, 0, 1]])
    return logits, labels


def test_twin_and_clean_row_are_compared_token_by_token_of_the_answer() -> None:
    logits, labels = pair()
    loss = consistency_loss(logits, labels, torch.tensor([-1, 0]), "js")
    at_the_answer = 0.75 * math.log(4 / 3)  # as in test_js_by_hand; the end tokens agree: 0
    assert loss.item() == pytest.approx(at_the_answer / 2, abs=1e-6)


@given(st.integers(1, 6))
def test_the_consistency_loss_is_a_mean_over_twins(count: int) -> None:
    # Defect 3 of the reference code: it sums over twins and tokens, so that lambda depends on both.
    logits, labels = pair()
    many = [0, *[1] * count]
    loss = consistency_loss(logits[many], labels[many], torch.tensor([-1, *[0] * count]), "js")
    assert loss.item() == pytest.approx(0.375 * math.log(4 / 3), abs=1e-6)


def test_each_twin_is_compared_with_its_own_clean_row() -> None:
    logits, labels = pair()
    order = [0, 1, 1, 1]  # the second pair is two equal rows: no divergence
    loss = consistency_loss(logits[order], labels[order], torch.tensor([-1, 0, -1, 2]), "js")
    assert loss.item() == pytest.approx(0.375 * math.log(4 / 3) / 2, abs=1e-6)


@pytest.mark.parametrize("kind", CONSISTENCY)
def test_no_gradient_reaches_a_clean_row(kind: str) -> None:
    torch.manual_seed(1)
    _, labels = pair()
    logits = torch.randn(2, 5, 2, requires_grad=True)
    consistency_loss(logits, labels, torch.tensor([-1, 0]), kind).backward()
    assert logits.grad is not None
    reached = logits.grad.abs().sum(dim=-1) > 0
    assert reached.tolist() == [[False] * 5, [False, False, True, True, False]]


def test_without_twins_there_is_nothing_to_be_consistent_with() -> None:
    logits, labels = pair()
    loss = consistency_loss(logits.requires_grad_(), labels, torch.tensor([-1, -1]), "kl")
    assert (loss.item(), loss.shape) == (0.0, ())
