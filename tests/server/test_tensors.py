"""Safetensors headers are read with every fault named, and renamed without touching a number."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modint_guard.errors import AdapterError
from modint_server.adapters.tensors import read_header, rename
from tests.server.adapter_folders import save


def test_names_shapes_and_metadata_are_read(tmp_path: Path) -> None:
    file = read_header(save(tmp_path / "x", {"a": np.ones((2, 3), np.float32)}, {"format": "pt"}))
    (tensor,) = file.tensors.values()
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.start, tensor.end) == ("a", "F32", (2, 3), 0, 24)
    assert file.metadata == {"format": "pt"}


def test_zero_is_zero_of_either_sign_in_every_width(tmp_path: Path) -> None:
    zeros: dict[str, Any] = {
        "f32": np.array([0.0, -0.0], np.float32),
        "f16": np.array([-0.0], np.float16),
        "i": np.zeros(2, np.int64),
    }
    file = read_header(save(tmp_path / "x", {**zeros, "one": np.array([0, 1e-30], np.float32)}))
    assert {name: file.is_zero(tensor) for name, tensor in file.tensors.items()} == {
        "f32": True,
        "f16": True,
        "i": True,
        "one": False,
    }


def test_infinite_values_and_no_numbers_are_found(tmp_path: Path) -> None:
    largest = np.finfo(np.float32).max
    values = {"fine": [1.0, largest], "inf": [1.0, np.inf], "nan": [np.nan, 1.0]}
    file = read_header(save(tmp_path / "x", {name: np.array(v, np.float32) for name, v in values.items()}))
    assert [file.is_finite(tensor) for tensor in file.tensors.values()] == [True, False, False]


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no safetensors file"),
        (b"\xff" * 8, "no safetensors file"),
        (struct.pack("<Q", 100) + b"{}", "cut off"),
        (header(b"{"), "cannot be read as safetensors"),
        (header(b"[]"), "damaged header"),
        (header(json.dumps({"a": {**ENTRY, "dtype": "F3"}}).encode(), b"1234"), "unknown type F3"),
        (header(json.dumps({"a": ENTRY}).encode(), b"123"), "a does not fit the file"),
        (header(json.dumps({"a": {**ENTRY, "shape": [2]}}).encode(), b"1234"), "a does not fit the file"),
        (header(json.dumps({"a": {"dtype": "F32"}}).encode()), "damaged header"),
    ],
)
def test_a_damaged_file_is_refused_by_name(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(AdapterError, match=sentence) as refused:
        read_header(tmp_path / "weights")
    assert str(tmp_path / "weights") in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be read"):
        read_header(tmp_path / "missing")


def test_renaming_changes_names_and_nothing_else(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"a": np.arange(6, dtype=np.float32), "b": np.arange(3, dtype=np.float16)}
    path = save(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    path.chmod(0o640)
    before = path.read_bytes()
    original = rename(read_header(path), {"a": "a much longer name"})
    after = read_header(path)
    assert list(after.tensors) == ["a much longer name", "b"]
    assert path.read_bytes()[after.data_start :] == tensors["a"].tobytes() + tensors["b"].tobytes()
    assert (after.data_start % 8, after.metadata, path.stat().st_mode & 0o777) == (0, {"format": "pt"}, 0o640)
    assert original.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.safetensors", "x.safetensors.orig"]


def test_a_second_renaming_keeps_the_first_original(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"a": np.ones(1, np.float32)})
    before = path.read_bytes()
    rename(read_header(path), {"a": "b"})
    assert rename(read_header(path), {"b": "c"}).read_bytes() == before


def test_two_tensors_of_one_name_are_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)})
    before = path.read_bytes()
    with pytest.raises(AdapterError, match="two tensors would be called b"):
        rename(read_header(path), {"a": "b"})
    assert path.read_bytes() == before
