"""Reads the headers of safetensors files (names, sizes, faults), and renames keys without changing a number.

The format: eight bytes with the header's length (little endian), the header as JSON, the tensors' bytes. The
library of that name is not used, because the gateway needs it for nothing else.
"""

import json
import os
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from modint_guard.errors import AdapterError
from modint_server.adapters.files import regular, shown

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
# Bytes of an element.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
SIZES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
SIZES |= {"F8_E8M0": 1, "C64": 8}
PIECE_BYTES = 2**26  # of a tensor, in memory at a time
# For floating point: the unsigned type of the same width, and the mask of the exponent bits in it.
_EXPONENT = {
    "F64": (np.uint64, 0x7FF0 << 48),
    "F32": (np.uint32, 0x7F80 << 16),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


@dataclass(frozen=True)
class Tensor:
    """One entry of a header; `start` and `end` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorFile:
    """A file whose header has been read and fits its size."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    data_start: int

    def is_zero(self, tensor: Tensor) -> bool:
        """Whether every element is zero (of either sign)."""
        if tensor.dtype not in _EXPONENT:
            return not any(raw.any() for raw in self._pieces(tensor))
        kind, _ = _EXPONENT[tensor.dtype]
        return not any((raw.view(kind) << 1).any() for raw in self._pieces(tensor))

    def is_finite(self, tensor: Tensor) -> bool:
        """Whether no element is infinite or not a number: all exponent bits set. Integers are finite."""
        if tensor.dtype not in _EXPONENT:
            return True
        kind, mask = _EXPONENT[tensor.dtype]
        return not any(((raw.view(kind) & kind(mask)) == kind(mask)).any() for raw in self._pieces(tensor))

    def _pieces(self, tensor: Tensor) -> Iterator["np.ndarray[Any, np.dtype[np.uint8]]"]:
        with self.path.open("rb") as file:
            file.seek(self.data_start + tensor.start)
            for at in range(tensor.start, tensor.end, PIECE_BYTES):
                yield np.frombuffer(file.read(min(PIECE_BYTES, tensor.end - at)), np.uint8)


def read_header(path: Path) -> TensorFile:
    """Reads a file's header, and checks it against the file's size by the rules of safetensors.

    Raises AdapterError, naming the file, for whatever safetensors would refuse.
    """
    try:
        with regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else MAX_HEADER_BYTES + 1
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise AdapterError(f"{path} is no safetensors file, or it was cut off: copy or save it again")
            header = orjson.loads(file.read(length))
    except (OSError, ValueError) as exc:
        raise AdapterError(f"{path} cannot be read as safetensors ({exc}): save it again") from exc
    data_start = 8 + length
    try:
        metadata = _metadata(header)
        tensors = {name: _tensor(name, entry) for name, entry in header.items()}
        _check_order(tensors, size - data_start)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise AdapterError(f"{path} has a damaged header ({exc}): copy or save it again") from exc
    return TensorFile(path, tensors, metadata, data_start)


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    """Takes the metadata out of a header; raises AttributeError or ValueError if they are no strings."""
    metadata = header.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no strings")
    return dict(metadata)


def _tensor(name: str, entry: Any) -> Tensor:
    """One entry of a header; raises ValueError if its size is not that of its shape."""
    start, end = entry["data_offsets"]
    tensor = Tensor(name, entry["dtype"], tuple(entry["shape"]), start, end)
    if tensor.dtype not in SIZES:
        raise ValueError(f"{shown(name)} has an unknown type, {shown(tensor.dtype)}")
    if not all(type(number) is int and number >= 0 for number in (*tensor.shape, start, end)):
        raise ValueError(f"{shown(name)} has a size that is no whole number")
    if end - start != prod(tensor.shape) * SIZES[tensor.dtype]:
        raise ValueError(f"{shown(name)} does not fit the file")
    return tensor


def _check_order(tensors: Mapping[str, Tensor], data_bytes: int) -> None:
    """Raises ValueError unless the tensors follow each other from the header to the end of the file."""
    at = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != at:
            raise ValueError(f"{shown(tensor.name)} does not begin where the one before it ends")
        at = tensor.end
    if at != data_bytes:
        raise ValueError(f"its tensors fill {at} of {data_bytes} bytes, which does not fit the file")


def rename(file: TensorFile, names: Mapping[str, str]) -> Path:
    """Rewrites a file with some of its tensors renamed, atomically; returns the path of the original's copy.

    names: old name -> new name. The new file is complete and on disk before it takes the old one's name.
    Raises AdapterError if two tensors would have the same name, or if the folder cannot be written.
    """
    for name, count in Counter(names.get(name, name) for name in file.tensors).items():
        if count > 1:
            raise AdapterError(f"{file.path}: two tensors would be called {name}: remove one of them first")
    original = file.path.with_name(file.path.name + ".orig")
    try:
        if not original.exists():
            shutil.copy2(file.path, original)
        _write(file, _header(file, names))
    except OSError as exc:
        raise AdapterError(
            f"{file.path} cannot be rewritten ({exc.strerror}): make its folder writable"
        ) from exc
    return original


def _header(file: TensorFile, names: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(file.metadata)} if file.metadata else {}
    for name, tensor in file.tensors.items():
        entries[names.get(name, name)] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.start, tensor.end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # data begins at a multiple of eight


def _write(file: TensorFile, header: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.path.parent, prefix=f".{file.path.name}-")
    new_file = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target, file.path.open("rb") as source:
            target.write(struct.pack("<Q", len(header)) + header)
            source.seek(file.data_start)
            shutil.copyfileobj(source, target, 2**20)
            target.flush()
            os.fsync(target.fileno())
        shutil.copymode(file.path, new_file)
        new_file.replace(file.path)
    finally:
        new_file.unlink(missing_ok=True)
