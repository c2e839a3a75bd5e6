"""A linear classifier over hashed features, and the file of its weights."""

from pathlib import Path

import numpy as np
import pytest

from modint_guard.chat.linear import (
    WEIGHTS,
    Linear,
    Reader,
    collect,
    packed,
    shipped_reader,
    unpacked,
    write_reader,
)
from modint_guard.chat.ngrams import BUCKETS


def table(**weights: tuple[float, float]) -> Linear:
    """A classifier of two classes whose only weights are those of the named buckets."""
    values = np.zeros((BUCKETS, 2), np.float32)
    for name, row in weights.items():
        values[int(name[1:])] = row
    return Linear(values, np.zeros(2, np.float32))


def test_probabilities_are_those_of_the_summed_weights() -> None:
    model = table(b7=(1.0, 0.0), b9=(0.0, 3.0))
    rows, places = np.array([0, 0, 1]), np.array([7, 9, 9])
    features = collect([(rows, places, 1.0)], 3)
    # Row 0 has two features, each worth 1/sqrt(2); row 2 has none.
    found = model.probabilities(features)
    assert found[0, 1] == pytest.approx(1 / (1 + np.exp(-2 / np.sqrt(2))))
    assert found[1, 1] == pytest.approx(1 / (1 + np.exp(-3)))
    assert found[2].tolist() == [0.5, 0.5]


def test_packed_weights_keep_small_ones_apart() -> None:
    weights = np.array([[1.0, -1.0], [0.001, -0.25], [0.0, 0.0]], np.float32)
    kept = unpacked(*packed(weights))
    assert kept[0].tolist() == [1.0, -1.0] and kept[2].tolist() == [0.0, 0.0]
    assert kept[1] == pytest.approx([0.001, -0.25], rel=0.02)
    assert unpacked(*packed(np.zeros((2, 2), np.float32))).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_the_same_reader_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    reader = Reader(table(b3=(1.0, -1.0)), frozenset({"what", "wie"}), table(b4=(0.5, 0.25)))
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    write_reader(reader, first)
    write_reader(reader, second)
    assert first.read_bytes() == second.read_bytes()


def test_the_shipped_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size <= 1_000_000
    reader = shipped_reader()
    assert reader.units.weights.shape == (BUCKETS, 3) and reader.relevance.weights.shape == (BUCKETS, 4)
    assert "what" in reader.openers
