"""Reads the headers of safetensors files (names, sizes, faults), and renames keys without changing a number.

The format: eight bytes with the header's length (little endian), the header as JSON, the tensors' bytes. The
library of that name is not used, because the gateway needs it for nothing else.
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from modint_guard.errors import AdapterError

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
# Bytes of an element.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
SIZES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
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
        raw = self._raw(tensor)
        if tensor.dtype not in _EXPONENT:
            return not raw.any()
        kind, _ = _EXPONENT[tensor.dtype]
        return not (raw.view(kind) << 1).any()

    def is_finite(self, tensor: Tensor) -> bool:
        """Whether no element is infinite or not a number: all exponent bits set. Integers are finite."""
        if tensor.dtype not in _EXPONENT:
            return True
        kind, mask = _EXPONENT[tensor.dtype]
        bits = self._raw(tensor).view(kind)
        return not bool(((bits & kind(mask)) == kind(mask)).any())

    def _raw(self, tensor: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        with self.path.open("rb") as file:
            file.seek(self.data_start + tensor.start)
            return np.frombuffer(file.read(tensor.end - tensor.start), np.uint8)


def read_header(path: Path) -> TensorFile:
    """Reads a file's header and checks it against the file's size; raises AdapterError naming the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else MAX_HEADER_BYTES + 1
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise AdapterError(f"{path} is no safetensors file, or it was cut off: copy or save it again")
            header = json.loads(file.read(length))
    except (OSError, ValueError) as exc:
        raise AdapterError(f"{path} cannot be read as safetensors ({exc}): save it again") from exc
    data_start = 8 + length
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
    try:
        tensors = {name: _tensor(name, entry, size - data_start) for name, entry in header.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise AdapterError(f"{path} has a damaged header ({exc}): copy or save it again") from exc
    return TensorFile(path, tensors, metadata, data_start)


def _tensor(name: str, entry: Any, data_bytes: int) -> Tensor:
    """One entry of a header; raises ValueError if it does not fit the file's `data_bytes`."""
    start, end = entry["data_offsets"]
    tensor = Tensor(name, entry["dtype"], tuple(entry["shape"]), start, end)
    if tensor.dtype not in SIZES:
        raise ValueError(f"{name} has the unknown type {tensor.dtype}")
    if not 0 <= start <= end <= data_bytes or end - start != prod(tensor.shape) * SIZES[tensor.dtype]:
        raise ValueError(f"{name} does not fit the file")
    return tensor


def rename(file: TensorFile, names: Mapping[str, str]) -> Path:
    """Rewrites a file with some of its tensors renamed, atomically; returns the path of the original's copy.

    names: old name -> new name. The new file is complete and on disk before it takes the old one's name.
    Raises AdapterError if two tensors would have the same name, or if the folder cannot be written.
    """
    renamed = [names.get(name, name) for name in file.tensors]
    for name in renamed:
        if renamed.count(name) > 1:
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
