"""The figures of `locate`, worked out by hand."""

import math

import numpy as np
import pytest

from modint_training.locate.ablation import counts_ablated, vulnerability
from modint_training.locate.adapter import contribution, counts_kept, layer_of, least_kept
from modint_training.locate.attention import displacement, dominance
from modint_training.locate.knockout import windows
from modint_training.locate.overlap import (
    a_distance,
    cka,
    cosines,
    median_widths,
    mmd,
    shuffled_cka,
    subspace_overlap,
    without_massive,
)
from modint_training.locate.patching import is_moved, recovery, top_sites
from modint_training.locate.subject import Site

AXES = np.eye(4)


def test_a_patch_recovers_three_quarters_of_the_way() -> None:
    assert recovery(0.1, 0.7, 0.9) == pytest.approx(0.75)
    assert recovery(0.1, 0.1, 0.9) == 0 and recovery(0.1, 0.9, 0.9) == 1


def test_a_lie_that_moves_less_than_a_nat_is_left_out() -> None:
    assert is_moved(-1.0, 0.0) and not is_moved(-0.9, 0.0) and not is_moved(3.0, 0.0)
    with pytest.raises(ZeroDivisionError):
        recovery(0.5, 0.7, 0.5)


def test_the_top_sites_are_those_of_each_kind_with_the_largest_estimate_whatever_its_sign() -> None:
    sites = [Site("mlp", layer, "last") for layer in range(3)] + [Site("head", 0, "last", 1)]
    means = dict(zip((site.key for site in sites), (0.1, -0.9, 0.5, 0.01), strict=True))
    assert top_sites(sites, means, 2) == [sites[1], sites[2], sites[3]]
    assert len(means) == 4  # no two sites have the same key


def test_a_context_that_gets_three_times_the_attention_on_half_the_tokens_dominates_sixfold() -> None:
    assert dominance(0.6, 2, 0.2, 4) == pytest.approx(6)
    assert dominance(0.6, 2, 0.0, 4) == math.inf


def test_a_modality_that_keeps_a_quarter_of_its_attention_is_displaced_by_three_quarters() -> None:
    assert displacement(0.1, 0.4) == pytest.approx(0.75)
    assert displacement(0.5, 0.4) == pytest.approx(-0.25)


def test_edges_are_cut_in_a_quarter_of_the_layers_around_each() -> None:
    assert windows(5) == [range(layer, layer + 1) for layer in range(5)]
    assert windows(28)[0] == range(4) and windows(28)[10] == range(7, 14) and windows(28)[27] == range(24, 28)


def test_a_rotation_leaves_cka_at_one_and_a_constant_side_has_none() -> None:
    states = np.random.default_rng(0).normal(size=(6, 3))
    turned, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    assert cka(states, states @ turned) == pytest.approx(1)
    assert cka(states, np.ones((6, 2))) == 0


def test_few_pairs_in_many_dimensions_are_alike_by_chance() -> None:
    first, second = np.random.default_rng(2).normal(size=(2, 8, 400))
    assert cka(first, second) == pytest.approx(shuffled_cka(first, second), abs=0.03)
    assert shuffled_cka(first, second) > 0.9


def test_two_points_at_zero_and_two_at_one_differ_by_two_less_two_over_e() -> None:
    assert mmd(np.zeros((2, 1)), np.ones((2, 1)), [1.0]) == pytest.approx(2 - 2 / math.e)
    assert mmd(np.zeros((2, 1)), np.zeros((2, 1)), [1.0]) == 0


def test_the_kernels_are_as_wide_as_states_are_apart() -> None:
    # Of the squared distances 1, 1 and 4 the median is 1.
    assert median_widths(np.array([[0.0], [1.0]]), np.array([[2.0]])) == [0.25, 0.5, 1.0, 2.0, 4.0]


def test_two_planes_with_one_axis_in_common_overlap_by_half() -> None:
    assert subspace_overlap(AXES[[0, 1]], AXES[[0, 2]], 2) == pytest.approx(0.5)
    assert subspace_overlap(AXES[[0, 1]], AXES[[0, 1]], 2) == pytest.approx(1)
    assert subspace_overlap(AXES[[0, 1]], AXES[[2, 3]], 2) == pytest.approx(0)


def test_a_probe_tells_apart_what_differs_and_guesses_at_what_does_not() -> None:
    drawn = np.random.default_rng(3).normal(size=(2, 200, 2))
    items = list(range(200))
    assert a_distance(drawn[0], drawn[1] + 20, items, items) == pytest.approx(2)
    assert a_distance(drawn[0], drawn[1], items, items) == pytest.approx(0, abs=0.4)


def test_massive_activations_are_dropped_and_nothing_else() -> None:
    states = np.array([[1.0], [2.0], [3.0], [2000.0]])
    assert without_massive(states).tolist() == [[1.0], [2.0], [3.0]]


def test_the_cosine_of_each_pair() -> None:
    pairs = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    assert cosines(*pairs).tolist() == [1, 0, 0]


def test_a_module_contributes_what_is_lost_without_it() -> None:
    assert contribution(5.0, 2.0, 1.0) == pytest.approx(0.75)  # 4 nats gained, 3 of them lost
    assert contribution(5.0, 5.0, 1.0) == 0 and contribution(5.0, 1.0, 1.0) == 1


def test_the_least_number_of_modules_is_that_from_which_on_enough_is_restored() -> None:
    assert least_kept([0, 1, 2, 3], [0.0, 0.95, 0.8, 1.0]) == 3
    assert least_kept([0, 1, 2, 3], [0.0, 0.95, 0.9, 1.0]) == 1
    assert least_kept([0, 1], [0.0, 0.5]) is None


def test_every_number_of_few_modules_is_kept_and_some_of_many() -> None:
    assert counts_kept(3) == [0, 1, 2, 3]
    many = counts_kept(224)
    assert many[0] == 0 and many[-1] == 224 and len(many) <= 31


def test_heads_are_ablated_up_to_a_fifth_of_them() -> None:
    assert counts_ablated(30) == [0, 1, 2, 3, 4, 5, 6]
    assert counts_ablated(1024) == [0, 1, 2, 4, 8, 16, 32, 51, 64, 128, 204]


def test_a_head_does_harm_by_what_its_absence_gains_beside_a_lie_less_what_it_loses_without() -> None:
    assert vulnerability([4.0, 2.0], [1.0, -3.0]) == pytest.approx(3 - 1.5)


def test_a_module_is_of_the_layer_that_its_name_says() -> None:
    assert layer_of("model.language_model.layers.12.mlp.up_proj") == 12
    assert layer_of("model.multi_modal_projector.linear_1") is None
