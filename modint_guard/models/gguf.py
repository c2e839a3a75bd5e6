"""Read a GGUF file: its metadata, and its tensors as float32.

Only the three tensor types that SmolLM2's file holds are read (F32, Q8_0, Q4_1), so that no further library
is needed. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modint_guard.errors import ConfigError

Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]  # (blocks, bytes of one block)

MAGIC = b"GGUF"
VERSION = 3
BLOCK = 32  # elements of one quantised block
STRING, ARRAY = 8, 9
# struct's letter for each scalar type of the metadata, by its number in the file.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorKind:
    """How one tensor type is stored: so many elements in so many bytes, and how they become float32."""

    name: str
    elements: int
    size: int
    decode: Callable[[Blocks], Floats]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: `shape` in numpy's order (last dimension contiguous), `start` in bytes."""

    kind: TensorKind
    shape: tuple[int, ...]
    start: int


class Gguf:
    """A file's content. `metadata`: values by key. `tensor(name)` decodes one tensor.

    `name` stands in messages. Raises ConfigError if the content is no GGUF of version 3, is cut off, or holds
    another tensor type.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.name = name
        self._content = content
        self._at = 0
        try:
            self.metadata, self._entries = self._read_header()
        except (struct.error, UnicodeDecodeError) as exc:
            raise ConfigError(f"{name} is damaged or was cut off: fetch it again") from exc

    @property
    def names(self) -> list[str]:
        """The names of all tensors, in the file's order."""
        return list(self._entries)

    def tensor(self, name: str) -> Floats:
        """One tensor as float32. Raises ConfigError if the file holds none of that name."""
        if name not in self._entries:
            raise ConfigError(f"{self.name} holds no tensor {name!r}: it is another model than expected")
        entry = self._entries[name]
        blocks = prod(entry.shape) // entry.kind.elements
        stored = np.frombuffer(self._content, np.uint8, blocks * entry.kind.size, entry.start)
        return entry.kind.decode(stored.reshape(blocks, entry.kind.size)).reshape(entry.shape)

    def _read_header(self) -> tuple[Mapping[str, Any], Mapping[str, TensorEntry]]:
        if self._content[:4] != MAGIC:
            raise ConfigError(f"{self.name} is no GGUF file")
        self._at = 4
        version = self._scalar("I")
        if version != VERSION:
            raise ConfigError(f"{self.name} is GGUF version {version}, and only version {VERSION} is read")
        tensors, values = self._scalar("Q"), self._scalar("Q")
        metadata = {self._string(): self._value(self._scalar("I")) for _ in range(values)}
        entries = [self._entry() for _ in range(tensors)]
        align = metadata.get("general.alignment", 32)
        data_start = -(-self._at // align) * align
        return metadata, {name: self._placed(entry, data_start, name) for name, entry in entries}

    def _entry(self) -> tuple[str, TensorEntry]:
        name = self._string()
        shape = [self._scalar("Q") for _ in range(self._scalar("I"))]
        number, offset = self._scalar("I"), self._scalar("Q")
        if number not in KINDS:
            read = ", ".join(kind.name for kind in KINDS.values())
            raise ConfigError(f"{self.name}: {name} has tensor type {number}; only {read} are read")
        return name, TensorEntry(KINDS[number], tuple(reversed(shape)), offset)

    def _placed(self, entry: TensorEntry, data_start: int, name: str) -> TensorEntry:
        """The entry with its place in the whole file, checked against the file's size."""
        start = data_start + entry.start
        size = prod(entry.shape) // entry.kind.elements * entry.kind.size
        if start + size > len(self._content) or entry.shape[-1] % entry.kind.elements:
            raise ConfigError(f"{self.name} is damaged or was cut off at {name}: fetch it again")
        return TensorEntry(entry.kind, entry.shape, start)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            element, count = self._scalar("I"), self._scalar("Q")
            return [self._value(element) for _ in range(count)]
        if kind not in SCALARS:
            raise ConfigError(f"{self.name} has a metadata value of the unknown type {kind}")
        return self._scalar(SCALARS[kind])

    def _string(self) -> str:
        length = self._scalar("Q")
        self._at += length
        if self._at > len(self._content):
            raise struct.error("a string passes the end of the file")
        return self._content[self._at - length : self._at].decode()

    def _scalar(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._content, self._at)
        self._at += struct.calcsize(f"<{letter}")
        return value


def _halves(stored: Blocks) -> Floats:
    """Pairs of bytes as float16 numbers."""
    return np.ascontiguousarray(stored).view("<f2").astype(np.float32)


def _decode_f32(blocks: Blocks) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _decode_q8_0(blocks: Blocks) -> Floats:
    """A float16 scale, then 32 signed bytes: scale x byte."""
    codes = np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
    return _halves(blocks[:, :2]) * codes.astype(np.float32)


def _decode_q4_1(blocks: Blocks) -> Floats:
    """A float16 scale and minimum, then 16 bytes: low halves are elements 0-15, high halves 16-31."""
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    values: Floats = _halves(blocks[:, :2]) * codes + _halves(blocks[:, 2:4])
    return values


KINDS = {
    0: TensorKind("F32", 1, 4, _decode_f32),
    3: TensorKind("Q4_1", BLOCK, 20, _decode_q4_1),
    8: TensorKind("Q8_0", BLOCK, 34, _decode_q8_0),
}
