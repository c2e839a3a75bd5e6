"""Write and read model weights as safetensors, with numpy alone: bf16 in files, float32 in memory.

The format: eight bytes with the header's length (little endian), the header as JSON, the tensors' bytes.
"""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modint_guard.errors import ConfigError

Floats = NDArray[np.float32]
Halves = NDArray[np.uint16]  # the bits of bf16 numbers


def to_bf16(values: Floats) -> Halves:
    """Round finite float32 numbers to bf16: to the nearest, ties to even, as torch does."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(halves: Halves) -> Floats:
    """The float32 numbers that bf16 bits stand for."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def write_weights(file: Path, tensors: Iterable[tuple[str, Floats]]) -> None:
    """Write named tensors as bf16. The iterable may make them one by one: only bf16 is kept of each."""
    stored = {name: to_bf16(values) for name, values in tensors}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, halves in stored.items():
        start, end = end, end + halves.nbytes
        entries[name] = {"dtype": "BF16", "shape": list(halves.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # data begins at a multiple of eight
    with file.open("wb") as target:
        target.write(struct.pack("<Q", len(header)) + header)
        for halves in stored.values():
            target.write(halves.tobytes())


def read_weights(file: Path) -> dict[str, Floats]:
    """The tensors of a file that holds only bf16, as float32. Raises ConfigError if it is damaged."""
    content = file.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _tensor(content, 8 + length, entry) for name, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError, struct.error) as exc:
        raise ConfigError(
            f"{file} is damaged ({exc}): install modint-guard again, or copy the file again"
        ) from exc


def _tensor(content: bytes, data_start: int, entry: Any) -> Floats:
    if entry["dtype"] != "BF16":
        raise ValueError(f"it holds {entry['dtype']}, and only BF16 is read")
    start, end = entry["data_offsets"]
    halves = np.frombuffer(content, np.uint16, (end - start) // 2, data_start + start)
    return from_bf16(halves).reshape(entry["shape"])
