"""A linear classifier over hashed features, and the file of its weights."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from modint_guard.chat.linear import (
    WEIGHTS,
    Classifier,
    Linear,
    collect,
    packed,
    shipped_classifier,
    unpacked,
    write_classifier,
)
from modint_guard.chat.ngrams import BUCKETS
from modint_guard.chat.relevance import LABELS


def table(**weights: tuple[float, float]) -> Linear:
    """A classifier of two classes whose only weights are those of the named buckets."""
    values = np.zeros((BUCKETS, 2), np.float32)
    for name, row in weights.items():
        values[int(name[1:])] = row
    return Linear(values, np.zeros(2, np.float32))


def test_probabilities_are_those_of_the_summed_weights() -> None:
    model = table(b7=(1.0, 0.0), b9=(0.0, 3.0))
    # Two features of one part are each worth 1/sqrt(2): 3/sqrt(2) against 1/sqrt(2).
    both = model.probabilities(collect([(np.array([7, 9]), 1.0)]))
    assert both[1] == pytest.approx(1 / (1 + np.exp(-2 / np.sqrt(2))), rel=1e-5)
    one = model.probabilities(collect([(np.array([9]), 1.0), (np.array([], np.int64), 1.0)]))
    assert one[1] == pytest.approx(1 / (1 + np.exp(-3)))
    assert model.probabilities(collect([(np.array([5]), 1.0)])).tolist() == [0.5, 0.5]


def test_packed_weights_keep_small_ones_apart() -> None:
    weights = np.array([[1.0, -1.0], [0.001, -0.25], [0.0, 0.0]], np.float32)
    kept = unpacked(*packed(weights))
    assert kept[0].tolist() == [1.0, -1.0] and kept[2].tolist() == [0.0, 0.0]
    assert kept[1] == pytest.approx([0.001, -0.25], rel=0.02)
    assert unpacked(*packed(np.zeros((2, 2), np.float32))).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_the_same_classifier_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    classifier = Classifier(table(b3=(1.0, -1.0)), (0.5, 0.75))
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    write_classifier(classifier, first)
    write_classifier(classifier, second)
    assert first.read_bytes() == second.read_bytes()


def test_the_shipped_weights_are_small_and_those_of_the_card() -> None:
    assert WEIGHTS.stat().st_size <= 1_000_000
    classifier = shipped_classifier()
    card = json.loads(WEIGHTS.with_suffix(".json").read_text("utf-8"))
    assert classifier.model.weights.shape == (BUCKETS, len(LABELS))
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == card["sha256"]
    assert dict(zip(LABELS, classifier.limits, strict=True)) == card["believed_from"]
