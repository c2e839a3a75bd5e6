"""Rows of Parquet files and of folders that the `datasets` library saved, read with pyarrow alone.

The `datasets` library itself is not needed: `save_to_disk` writes Arrow streams beside two small JSON files,
and pyarrow maps them into memory without the cache and the dozen packages that the library needs.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from modint_guard.data.rows import Row
from modint_guard.errors import ConfigError, DataError
from modint_guard.types import JSON

KEPT_GROUPS = 2  # how many row groups of a Parquet file are kept in memory
NEEDS_PYARROW = "Parquet files and `datasets` folders need pyarrow: pip install 'modint-guard[train]'"


@dataclass(frozen=True, slots=True)
class TablePicture:
    """A picture inside a table; its bytes are read only when `read` is called."""

    name: str
    read: Callable[[], bytes]


class TableRows:
    """The rows of one Parquet file or one Arrow stream. Pictures stay in the file until they are needed; at
    most `KEPT_GROUPS` row groups of a Parquet file are in memory at once.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._open()

    def _open(self) -> None:
        pa = _pyarrow()
        self._failures = (pa.ArrowException, OSError)
        try:
            schema, sizes, self._group = _opened(self.file, pa)
        except self._failures as exc:
            raise DataError(
                f"cannot be read: {_first_line(exc)}; write it again", file=str(self.file)
            ) from exc
        self._names = _class_names(schema.metadata or {})
        self._pictures = {field.name for field in schema if _holds_bytes(field.type)}
        self._firsts = [0, *accumulate(sizes)]

    def __getstate__(self) -> Path:
        return self.file

    def __setstate__(self, file: Path) -> None:
        self.file = file
        self._open()  # a worker process maps the file itself

    def __len__(self) -> int:
        return self._firsts[-1]

    def row(self, number: int) -> Row:
        """Row `number`, from 0; columns without a value are left out."""
        values: JSON = {}
        for name, column in self._cells(number).items():
            value = self._picture(number, name, column) if name in self._pictures else column.as_py()
            if name in self._names and isinstance(value, int):
                value = self._names[name][value] if 0 <= value < len(self._names[name]) else None
            if value is not None:
                values[name] = without_nulls(value)
        return Row(self.file, number + 1, values)

    def _cells(self, number: int) -> dict[str, Any]:
        group = bisect_right(self._firsts, number) - 1
        try:
            table = self._group(group)
        except self._failures as exc:
            raise DataError(
                f"the rows from here on cannot be read: {_first_line(exc)}; write the file again",
                file=str(self.file),
                line=self._firsts[group] + 1,
            ) from exc
        return {name: table[name][number - self._firsts[group]] for name in table.schema.names}

    def _picture(self, number: int, name: str, cell: Any) -> Any:
        """A cell of bytes, {"bytes", "path"} or a list of either, with the bytes left in the file."""
        if not cell.is_valid:
            return None
        if _is_list(cell.type):
            return [self._table_picture(number, name, part, index) for index, part in enumerate(cell)]
        return self._table_picture(number, name, cell, None)

    def _table_picture(self, number: int, name: str, cell: Any, index: int | None) -> Any:
        if not cell.is_valid:
            return None
        if _is_struct(cell.type) and not cell["bytes"].is_valid:
            return cell["path"].as_py()

        def read() -> bytes:
            cell = self._cells(number)[name]
            part = cell if index is None else cell[index]
            return (part["bytes"] if _is_struct(part.type) else part).as_py()  # type: ignore[no-any-return]

        return TablePicture(name if index is None else f"{name}[{index}]", read)


def parquet_or_arrow(file: Path) -> bool:
    """Whether a file is one of these, by its first bytes or, for an Arrow stream, by its name."""
    with file.open("rb") as opened:
        return opened.read(6).startswith((b"PAR1", b"ARROW1")) or file.suffix == ".arrow"


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(NEEDS_PYARROW) from None
    return pyarrow


def _opened(file: Path, pa: Any) -> tuple[Any, list[int], Callable[[int], Any]]:
    """The schema, the number of rows in each group, and a function that reads one group as a table."""
    with file.open("rb") as opened:
        magic = opened.read(6)
    if magic.startswith(b"PAR1"):
        parquet = pa.parquet.ParquetFile(file)
        sizes = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
        return parquet.schema_arrow, sizes, lru_cache(KEPT_GROUPS)(parquet.read_row_group)
    source = pa.memory_map(str(file))
    if magic == b"ARROW1":
        batches = _all_batches(pa.ipc.open_file(source))
    else:
        batches = list(pa.ipc.open_stream(source))
    if not batches:
        raise DataError("the table is empty: give one with at least one row", file=str(file))
    return batches[0].schema, [batch.num_rows for batch in batches], batches.__getitem__


def _all_batches(reader: Any) -> list[Any]:
    return [reader.get_batch(n) for n in range(reader.num_record_batches)]


def _first_line(exc: BaseException) -> str:
    return str(exc).split("\n")[0].rstrip(".")


def _is_list(kind: Any) -> bool:
    return str(kind).startswith(("list<", "large_list<", "fixed_size_list<"))


def _is_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<")


def _holds_bytes(kind: Any) -> bool:
    """Whether a type is bytes, {"bytes", "path"}, or a list of either."""
    if _is_list(kind):
        return _holds_bytes(kind.value_type)
    if _is_struct(kind):
        return {field.name for field in kind} == {"bytes", "path"}
    return str(kind) in ("binary", "large_binary", "binary_view")


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The class names of ClassLabel columns, which hold numbers, by column."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        name: kind["names"]
        for name, kind in features.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
    }


def without_nulls(value: Any) -> Any:
    """A value without the nulls with which tables fill what a row does not have, at every depth."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


# -- folders ---------------------------------------------------------------------------------------


def saved_splits(folder: Path) -> list[str]:
    """The splits of a `DatasetDict` that `save_to_disk` wrote; none for any other folder."""
    index = folder / "dataset_dict.json"
    return [str(split) for split in _list_in(index, "splits")] if index.is_file() else []


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a `Dataset` that `save_to_disk` wrote; none for any other folder. Raises DataError
    for a selection of rows that is not written out.
    """
    state = folder / "state.json"
    if not state.is_file():
        return []
    if _list_in(state, "_indices_files", []):
        raise DataError(
            "this folder holds a selection that only an old version of `datasets` can apply: load it there, "
            "call flatten_indices() and save it again",
            file=str(state),
        )
    return [folder / str(entry["filename"]) for entry in _list_in(state, "_data_files")]


def _list_in(file: Path, key: str, otherwise: Any = None) -> Any:
    """The list under `key` in a JSON file that `datasets` wrote. Raises DataError if there is none."""
    try:
        entries = json.loads(file.read_text("utf-8")).get(key, otherwise)
    except (OSError, ValueError, AttributeError):
        entries = None
    if not isinstance(entries, list) or not (entries or otherwise is not None):
        raise DataError(f"has no {key}: save the data set again", file=str(file))
    return entries
