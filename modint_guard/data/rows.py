"""Rows of a JSON or JSONL file by number; only the place of each row is kept in memory."""

from __future__ import annotations

import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import orjson

from modint_guard.errors import DataError
from modint_guard.types import JSON

_BOM = b"\xef\xbb\xbf"
_SHOWN_CHARACTERS = 40
# A whole string, or one of the brackets, or the quotation mark of a string that does not end.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is in its file; `line` counts lines from 1, in tables rows from 1."""

    file: Path
    line: int
    values: JSON

    def error(self, problem: str, sample: str | None = None) -> DataError:
        """An error that names the place of this row."""
        return DataError(problem, file=str(self.file), line=self.line, sample=sample)


class Rows(Protocol):
    """The rows of one file; `row` raises DataError if one cannot be read."""

    @property
    def file(self) -> Path:
        """The file that holds them."""

    def __len__(self) -> int: ...

    def row(self, number: int) -> Row:
        """Row `number`, from 0."""


class TextRows:
    """The rows of a JSON array or of JSON lines. The file is opened again for each row, so that worker
    processes can share the object.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._starts, self._ends, self._lines = array("Q"), array("Q"), array("Q")
        with _opened(file) as data:
            for start, end, line in _places(data, file):
                self._starts.append(start)
                self._ends.append(end)
                self._lines.append(line)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, number: int) -> Row:
        """Row `number`, from 0. Raises DataError with its line."""
        line = self._lines[number]
        with self.file.open("rb") as opened:
            opened.seek(self._starts[number])
            text = opened.read(self._ends[number] - self._starts[number])
        try:
            values = orjson.loads(text)
        except orjson.JSONDecodeError as exc:
            remedy = "correct or delete this row"
            if number == 0 and not text.rstrip().endswith(b"}"):  # an object over several lines
                remedy = "a file that begins with { must hold one whole object per line; else write an array"
            raise DataError(f"not JSON: {_reason(exc)}; {remedy}", file=str(self.file), line=line) from exc
        if not isinstance(values, dict):
            raise DataError(
                f"a row must be an object with named values, not {excerpt(text.decode())}",
                file=str(self.file),
                line=line,
            )
        return Row(self.file, line, values)


def excerpt(value: object) -> str:
    """A short, quoted excerpt of a value, for messages."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def _reason(exc: orjson.JSONDecodeError) -> str:
    return exc.msg.partition(": line")[0]


def _opened(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:
        try:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            raise DataError("the file is empty: give one with at least one row", file=str(file)) from None


def _places(data: mmap.mmap, file: Path) -> Iterator[tuple[int, int, int]]:
    """Start, end and line of every row; the first character says which kind of file it is."""
    start = len(_BOM) if data[: len(_BOM)] == _BOM else 0
    first = re.compile(rb"\S").search(data, start)
    if first is None:
        raise DataError("the file is empty: give one with at least one row", file=str(file))
    if first[0] == b"[":
        return _elements(data, file, first.start())
    if first[0] == b"{":
        return _file_lines(data, start)
    raise DataError(
        f"begins with {excerpt(data[first.start() : first.start() + 12].decode('utf-8', 'replace'))}; "
        "read are a JSON array of objects, one JSON object a line, Parquet, and folders of `datasets`",
        file=str(file),
    )


def _file_lines(data: mmap.mmap, start: int) -> Iterator[tuple[int, int, int]]:
    line = 0
    while start < len(data):
        line += 1
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        if data[start:end].strip():
            yield start, end, line
        start = end + 1


def _elements(data: mmap.mmap, file: Path, opening: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and line of the objects in the array at `opening`, found by brackets and strings alone."""
    line = 1 + data[:opening].count(b"\n")
    done, begun, depth = opening, opening, 0  # everything before `done` has been read
    separator = b"["  # what must stand before the next object

    def error(problem: str, at: int) -> DataError:
        return DataError(problem, file=str(file), line=line + data[done:at].count(b"\n"))

    for token in _TOKEN.finditer(data, opening):
        sign, at = token[0], token.start()
        if sign == b'"':
            raise error("a string that begins here never ends: the file is damaged or cut off", at)
        if sign in (b"[", b"{"):
            depth += 1
            if depth == 2:
                begun = at
                if data[done:at].strip() != separator:
                    raise error(f"expected an object after a comma, found {_gap(data[done:at])}", at)
        elif sign in (b"]", b"}"):
            depth -= 1
            if depth == 1:
                line += data[done:begun].count(b"\n")
                yield begun, token.end(), line
                line += data[begun : token.end()].count(b"\n")
                done, separator = token.end(), b","
            if depth == 0:
                if data[done:at].strip() not in (b"", b"[" if separator == b"[" else b""):
                    raise error(f"expected the end of the array, found {_gap(data[done:at])}", at)
                if data[at + 1 :].strip():
                    raise error("more text follows the array: keep one array in a file", at)
                return
    raise error("the array has no end: the file is cut off; write it again", len(data))


def _gap(gap: bytes) -> str:
    return excerpt(gap.strip().decode("utf-8", "replace")) if gap.strip() else "nothing"
