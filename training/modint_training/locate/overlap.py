"""How alike two sets of states are: pure figures of feature overlap and of cross-modal consistency.

Rows are states, in float64. A figure says how far the encodings of two modalities overlap, and not whether
that is good.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

States = NDArray[np.float64]  # (n, D)

DIRECTIONS = 10  # of a subspace
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, in units of the median squared distance
RIDGE = 1.0  # of the probe, on standardised states
SHUFFLES = 20  # of the pairs, for the consistency that few pairs in many dimensions have by chance
MASSIVE = 10.0  # states this many times longer than the median are left out


def without_massive(states: States) -> States:
    """The states without those of massive activations, which dominate every distance (arXiv 2402.17762)."""
    norms = np.linalg.norm(states, axis=1)
    kept: States = states[norms <= MASSIVE * np.median(norms)]
    return kept


def a_distance(image: States, text: States, image_items: Sequence[int], text_items: Sequence[int]) -> float:
    """The proxy A-distance 2 (1 - 2 error) of a linear probe that tells the modalities apart: 2 if it always
    does, 0 if it guesses (Ben-David et al. 2007).

    The probe is fitted on the states of every other item and tried on those of the rest; `*_items` number
    the items that the states are of.
    """
    states = np.concatenate([image, text])
    label = np.concatenate([np.ones(len(image)), -np.ones(len(text))])
    fitted = np.concatenate([np.asarray(image_items), np.asarray(text_items)]) % 2 == 0
    weights = _ridge(_standardised(states, fitted)[fitted], label[fitted])
    said = _with_one(_standardised(states, fitted)[~fitted]) @ weights
    errors = [float(np.mean(said[label[~fitted] == side] * side <= 0)) for side in (1.0, -1.0)]
    return 2 * (1 - 2 * (errors[0] + errors[1]) / 2)  # both modalities weigh the same


def _standardised(states: States, fitted: NDArray[np.bool_]) -> States:
    spread = states[fitted].std(axis=0)
    scaled: States = (states - states[fitted].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scaled


def _with_one(states: States) -> States:
    return np.concatenate([states, np.ones((len(states), 1))], axis=1)


def _ridge(states: States, label: States) -> States:
    extended = _with_one(states)
    square = extended.T @ extended + RIDGE * np.eye(extended.shape[1])
    weights: States = np.linalg.solve(square, extended.T @ label).astype(np.float64)
    return weights


def mmd(image: States, text: States, widths: Sequence[float]) -> float:
    """The unbiased squared maximum mean discrepancy, a mean over Gaussian kernels exp(-d^2 / width) (Gretton
    et al. 2012): 0 for one distribution, and then as often below 0 as above it. Needs two states
    of each."""
    inside = [_squared(states, states) for states in (image, text)]
    between = _squared(image, text)
    return float(np.mean([_mmd(inside, between, width) for width in widths]))


def _mmd(inside: Sequence[States], between: States, width: float) -> float:
    alike = [float(_off_diagonal(np.exp(-squares / width)).mean()) for squares in inside]
    return alike[0] + alike[1] - 2 * float(np.exp(-between / width).mean())


def median_widths(image: States, text: States) -> list[float]:
    """The widths of the kernels: WIDTHS times the median squared distance of all states."""
    every = np.concatenate([image, text])
    median = float(np.median(_off_diagonal(_squared(every, every))))
    return [width * (median or 1.0) for width in WIDTHS]


def _squared(first: States, second: States) -> States:
    products = first @ second.T
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2 * products
    return np.maximum(squares, 0.0)


def _off_diagonal(square: States) -> States:
    return square[~np.eye(len(square), dtype=bool)]


def subspace_overlap(image: States, text: States, directions: int) -> float:
    """The share of the main directions that two sets have in common: ||U' V||_F^2 / k of their first k
    right singular vectors; 1 for the same subspace, 0 for orthogonal ones, k / D by chance. k is at most the
    number of states."""
    k = min(directions, len(image), len(text))
    first, second = (np.linalg.svd(states, full_matrices=False)[2][:k] for states in (image, text))
    return float(np.linalg.norm(first @ second.T) ** 2 / k)


def cka(first: States, second: States) -> float:
    """Linear centred kernel alignment of n pairs  # (n, D), (n, E); 1 if one is the other rotated (arXiv
    1905.00414). 0 if either side is constant."""
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    own = float(np.linalg.norm(first @ first.T) * np.linalg.norm(second @ second.T))
    return float(np.sum((first @ first.T) * (second @ second.T)) / own) if own else 0.0


def shuffled_cka(first: States, second: States, *, seed: int = 0) -> float:
    """The mean of `cka` over shuffled pairs: what n pairs in more than n dimensions have by chance."""
    generator = np.random.default_rng(seed)
    return float(np.mean([cka(first, second[generator.permutation(len(second))]) for _ in range(SHUFFLES)]))


def cosines(first: States, second: States) -> States:
    """The cosine of each pair  # (n, D), (n, D) -> (n,); 0 if one of the two is 0."""
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.sum(first * second, axis=1) / np.where(sizes > 0, sizes, 1.0)
