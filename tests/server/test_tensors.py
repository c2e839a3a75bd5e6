"""Safetensors headers are read with every fault named, and renamed without touching a number."""

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

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
        (header(json.dumps({"a": {**ENTRY, "dtype": "F3"}}).encode(), b"1234"), "an unknown type, 'F3'"),
        (header(json.dumps({"a": ENTRY}).encode(), b"123"), "fill 4 of 3 bytes"),
        (header(json.dumps({"a": {**ENTRY, "shape": [2]}}).encode(), b"1234"), "'a' does not fit the file"),
        (header(json.dumps({"a": {"dtype": "F32"}}).encode()), "damaged header"),
    ],
)
def test_a_damaged_file_is_refused_by_name(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(AdapterError, match=sentence) as refused:
        read_header(tmp_path / "weights")
    assert str(tmp_path / "weights") in str(refused.value)


SIZES = st.sampled_from([0, 1, 2, 4, 4.0, -4, True, None, 2**62, 2**64])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "f32", 5]),
        "shape": st.lists(SIZES, max_size=3) | st.integers(),
        "data_offsets": st.lists(st.integers(0, 12) | SIZES, min_size=1, max_size=3),
    },
    optional={"more": st.none()},
)
FITTING = st.lists(st.integers(0, 3), max_size=3).map(
    lambda sizes: {
        f"t{i}": {"dtype": "F32", "shape": [n], "data_offsets": [4 * sum(sizes[:i]), 4 * sum(sizes[: i + 1])]}
        for i, n in enumerate(sizes)
    }
)
HEADERS = st.dictionaries(st.text(max_size=3), ENTRIES, max_size=3) | FITTING | st.lists(ENTRIES, max_size=1)
METADATA = st.none() | st.dictionaries(st.text(max_size=2), st.text(max_size=2) | st.integers(), max_size=2)


def by_safetensors(path: Path) -> list[str] | None:
    """The names that the library itself reads; None if it refuses the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return sorted(file.keys())
    except (SafetensorError, ValueError):
        return None


def by_us(path: Path) -> list[str] | None:
    try:
        return sorted(read_header(path).tensors)
    except AdapterError:
        return None


@given(header_=HEADERS, metadata=METADATA, data=st.integers(0, 24))
def test_what_safetensors_refuses_is_refused(header_: Any, metadata: Any, data: int) -> None:
    if metadata is not None and isinstance(header_, dict):
        header_ = {"__metadata__": metadata, **header_}
    with tempfile.NamedTemporaryFile() as file:
        file.write(header(json.dumps(header_).encode(), b"\0" * data))
        file.flush()
        assert by_us(Path(file.name)) == by_safetensors(Path(file.name))


@given(entries=FITTING, at=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_file_with_one_wrong_byte_is_read_as_safetensors_reads_it(entries: Any, at: int, byte: int) -> None:
    size = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    content = bytearray(header(json.dumps(entries).encode(), b"\0" * size))
    content[at % len(content)] = byte
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        assert by_us(Path(file.name)) == by_safetensors(Path(file.name))


def test_a_header_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{}")
        file.truncate(100_000_100)
    with pytest.raises(AdapterError, match="no safetensors file"):
        read_header(tmp_path / "weights")


def test_a_tensor_larger_than_a_piece_is_searched_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modint_server.adapters.tensors.PIECE_BYTES", 16)
    file = read_header(save(tmp_path / "x", {"a": np.array([0] * 9 + [np.inf], np.float32)}))
    (tensor,) = file.tensors.values()
    assert (file.is_zero(tensor), file.is_finite(tensor)) == (False, False)


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
