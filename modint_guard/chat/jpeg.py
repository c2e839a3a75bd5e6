"""Whether a JPEG can be decoded, without decoding all of it.

libjpeg reads over damage in the data of a scan and fills what is missing. It fails at headers, and at a file
that ends before its end mark. So of a picture with one scan the headers and a little data, with an end mark
behind them, fail as the whole file does, if the first mark behind its data is an end mark. Marks are those of
ITU-T T.81, B.1.
"""

from __future__ import annotations

import numpy as np

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = (0xC0, 0xC1)  # sequential; progressive pictures have headers between their scans
_SCAN = 0xDA
_ENOUGH = 4096  # bytes of data: some blocks of every component


def beginning_of(data: bytes) -> bytes:
    """The beginning of a whole JPEG with one scan, and an end mark: decoding it fails if decoding all would.

    Anything else comes back as it is, a JPEG that is cut off among it.
    """
    scan = _only_scan(data)
    if scan is None or _first_mark(data, scan) != _END[1]:
        return data
    return data[: scan + _ENOUGH] + _END


def _only_scan(data: bytes) -> int | None:
    """Where the data of the only scan begin; None if this is no such JPEG."""
    if not data.startswith(_START):
        return None
    at, components = len(_START), None
    while at + 10 <= len(data) and data[at] == 0xFF:
        mark, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if mark in _FRAMES:
            components = data[at + 9]
        elif mark == _SCAN:
            return at + 2 + length if data[at + 4] == components else None
        at += 2 + length
    return None


def _first_mark(data: bytes, start: int) -> int | None:
    """The first mark from here on that ends a scan; None if there is none. Restarts do not end one, and a 0
    behind 255 makes it a byte of the data.
    """
    if len(data) - start < 2:
        return None
    view = np.frombuffer(data, np.uint8, offset=start)
    after = view[1:]
    is_mark = (view[:-1] == 0xFF) & (after != 0) & (after != 0xFF) & ((after & 0xF8) != 0xD0)
    first = is_mark.argmax()
    return int(after[first]) if is_mark[first] else None
