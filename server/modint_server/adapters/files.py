"""Reads files whose content nobody vouches for: regular ones only, without waiting, up to a size."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG
from typing import Any

import orjson

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 32
MAX_SHOWN_CHARS = 200


@contextmanager
def regular(path: Path) -> Iterator[BufferedReader]:
    """An open regular file; raises OSError for a directory, a pipe, a device or a link to itself."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no regular file")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def json_in(path: Path) -> Any:
    """The document in a regular file. Raises OSError or ValueError, whose text says what is wrong with it."""
    with regular(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES} bytes")
    document = orjson.loads(data)
    if _is_deeper(document, MAX_JSON_DEPTH):
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
    return document


def _is_deeper(document: object, levels: int) -> bool:
    if not isinstance(document, dict | list):
        return False
    children = document.values() if isinstance(document, dict) else document
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children)


def is_folder(path: Path) -> bool:
    """Whether a path, which may be any text, names a folder here."""
    try:
        return path.is_dir()
    except OSError:  # too long a name
        return False


def shown(value: object) -> str:
    """A value of a file as a message shows it: cut, and without control characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"
