"""A data set on disk as a sequence of items, each read and decoded when it is asked for."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import overload

from modint_guard.chat.images import ImageLimits
from modint_guard.data.formats import FORMATS, Columns, detect
from modint_guard.data.item import Family, Item
from modint_guard.data.rows import Row, Rows, TextRows, excerpt
from modint_guard.data.samples import Reading, Sample, family_named, sample
from modint_guard.data.tables import TableRows, parquet_or_arrow, saved_files, saved_splits
from modint_guard.errors import ConfigError, DataError
from modint_guard.types import JSON

ITEMS = "items.jsonl"  # what `write_items` writes
LOOKED_AT = 1000  # rows by whose keys the format is told
DESCRIPTION = "dataset_info.json"  # LLaMA-Factory's; save_to_disk writes one of the same name
_TEXT_SUFFIXES = (".json", ".jsonl")
_SUFFIXES = (*_TEXT_SUFFIXES, ".parquet", ".arrow")
_SPLIT = re.compile(r"^(train|validation|valid|val|dev|test|eval)(?![a-z])")


class DataSet(Sequence[Item]):
    """Items by number, with their pictures; `samples` gives them without decoding a picture.

    Nothing but the place of each row is in memory, and the object may be shared with worker processes.
    Indexing raises DataError where a row or its picture cannot be used.
    """

    def __init__(self, rows: Sequence[Rows], how: Reading) -> None:
        self._rows = rows
        self._firsts = [0, *accumulate(len(held) for held in rows)]
        self.reading = how

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the rows."""
        return tuple(held.file for held in self._rows)

    @property
    def format(self) -> str:
        """The rows' format, as told by their keys or named by the caller."""
        return self.reading.format

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: slice) -> list[Item]: ...
    def __getitem__(self, number: int | slice) -> Item | list[Item]:
        if isinstance(number, slice):
            return [self.sample(n).load() for n in range(*number.indices(len(self)))]
        return self.sample(number).load()

    def __iter__(self) -> Iterator[Item]:
        return (held.load() for held in self.samples())

    def sample(self, number: int) -> Sample:
        """Item `number` with its pictures not yet decoded. Raises DataError, IndexError."""
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return sample(self.row(number), number, self.reading)

    def row(self, number: int) -> Row:
        """Row `number` as it stands in its file. Raises DataError."""
        held = bisect_right(self._firsts, number) - 1
        return self._rows[held].row(number - self._firsts[held])

    def samples(self) -> Iterator[Sample]:
        """Every item in turn, no picture decoded: families and labels cost no decoding."""
        return (self.sample(number) for number in range(len(self)))

    def digest(self) -> str:
        """SHA-256 of the files that hold the rows, in order; picture files are not in it."""
        made = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as opened:
                made.update(hashlib.file_digest(opened, "sha256").digest())
        return made.hexdigest()


def read_data(
    path: Path,
    *,
    format: str | None = None,
    image_root: Path | None = None,
    split: str | None = None,
    family: str | None = None,
    columns: Mapping[str, str] | None = None,
    number_rows: bool = False,
    limits: ImageLimits | None = None,
    check: bool = True,
) -> DataSet:
    """The data set at `path`: a JSON, JSONL, Parquet or Arrow file, or a folder of one.

    format: one of `FORMATS`; None tells it by the rows' keys. image_root: where relative pictures lie, else
    beside the file. split: of a folder with several. family: of rows that do not say theirs. columns:
    LLaMA-Factory's names for the rows' own. number_rows: name samples by row, whatever `id` says. check: read
    every row now (no picture is decoded) and raise the first problem, rather than in the middle of a run.
    Raises DataError with file, line, sample id and remedy; ConfigError for a wrong option.
    """
    files = data_files(path, split)
    rows = [_rows(file) for file in files]
    told, mapped = _description(files[0]) if format in (None, "llama-factory") else (None, Columns())
    mapped = _mapped(mapped, columns or {})
    if format is not None and format not in FORMATS:
        raise ConfigError(f"no format {format!r}: name one of {', '.join(FORMATS)}")
    how = Reading(
        format=format or told or ("llama-factory" if columns else _detected(rows, path)),
        columns=mapped,
        image_root=image_root or files[0].parent,
        limits=limits or ImageLimits(),
        family=_default_family(family),
        number_rows=number_rows,
    )
    data = DataSet(rows, how)
    if not len(data):
        raise DataError("holds no rows: give a data set with at least one", file=str(path))
    if check:
        for problem in problems(data, pictures=False):
            raise problem
    return data


def read_items(folder: Path) -> list[Item]:
    """The items of a folder written by `write_items`. Raises DataError."""
    return list(read_data(folder / ITEMS, format="items"))


def first_of_each(data: DataSet, count: int) -> list[Item]:
    """The first `count` labelled items of each family; no picture of another is decoded."""
    return [data[number] for number in numbers_of_each(data, count)]


def numbers_of_each(data: DataSet, count: int) -> list[int]:
    """The rows' numbers of the first `count` labelled items of each family."""
    seen: Counter[str] = Counter()
    numbers = []
    for number, row in enumerate(data.samples()):
        if row.item.labelled:
            seen[row.item.family] += 1
            if seen[row.item.family] <= count:
                numbers.append(number)
    return numbers


def problems(
    data: DataSet,
    *,
    pictures: bool = True,
    checks: Sequence[Callable[[Item], None]] = (),
    seen: Callable[[Sample], None] = lambda sample: None,
) -> Iterator[DataError]:
    """Everything that is wrong with a data set, row by row.

    pictures: decode each one. checks: further functions of a loaded item that raise DataError, such as
    `check_length` with a model's tokenizer; they need the pictures. seen: called with each readable sample.
    """
    firsts: dict[str, tuple[int, str]] = {}  # the first row with each id: number, and place in words
    for number in range(len(data)):
        try:
            held = data.sample(number)
        except DataError as problem:
            yield problem
            continue
        seen(held)
        place = f"line {held.row.line} of {held.row.file.name}"
        first, there = firsts.setdefault(held.item.id, (number, place))
        if first != number:
            yield held.row.error(
                f"its id is that of {there} too: make ids unique, or have the rows numbered "
                "(--number-rows, reading.number_rows of a recipe)",
                held.item.id,
            )
        if pictures:
            yield from _of_pictures(held, checks)


def _of_pictures(held: Sample, checks: Sequence[Callable[[Item], None]]) -> Iterator[DataError]:
    loaded = {}
    try:
        for name, held_picture in held.pictures.items():
            loaded[name] = held_picture.load()
        for check in checks:
            check(held.item.replace(**loaded))
    except DataError as problem:
        yield held.row.error(problem.problem, held.item.id)


def check_length(
    item: Item, tokens: Callable[[Item], Sequence[int]], image_token: int, max_length: int
) -> None:
    """Refuse an item of more than `max_length` tokens: cut anywhere, it could lose part of its picture, and
    the model would learn from a picture it does not see (a defect of the reference code).

    tokens: an item as token ids, its picture's placeholders expanded. Raises DataError.
    """
    ids = tokens(item)
    if len(ids) > max_length:
        taken = sum(token == image_token for token in ids)
        raise DataError(
            f"it takes {len(ids)} tokens, {taken} of them its picture's, and {max_length} are allowed: raise "
            "the maximum length, shorten the text or scale the picture down; nothing is cut off",
            sample=item.id,
        )


# -- finding files -----------------------------------------------------------------------------------


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """The files that hold the rows of `path`. Raises DataError where it is none or the choice is open."""
    if path.is_file():
        if split is not None:
            raise ConfigError(
                f"{path} is a file and has no splits: leave out --split {split}, or reading.split of the "
                "recipe"
            )
        return [path]
    if not path.is_dir():
        raise DataError("there is no such file or folder: give the path of a data set", file=str(path))
    if splits := saved_splits(path):
        return saved_files(path / _chosen(splits, split, path))
    if files := saved_files(path):
        return files
    return _in_folder(path, split)


def _in_folder(path: Path, split: str | None) -> list[Path]:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in _SUFFIXES and file.name != DESCRIPTION and file.is_file()
    )
    tables = [file for file in files if file.suffix not in _TEXT_SUFFIXES]
    texts = [file for file in files if file.suffix in _TEXT_SUFFIXES]
    if not files:
        raise DataError(f"the folder holds no {', '.join(_SUFFIXES)} file: give a data set", file=str(path))
    by_split: dict[str, list[Path]] = {}
    for file in tables or texts:
        by_split.setdefault(_split_of(file, path), []).append(file)
    chosen = by_split[_chosen(list(by_split), split, path)]
    if not tables and len(chosen) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in chosen[:8])
        raise DataError(f"the folder holds {names}: name the one to be read", file=str(path))
    return chosen


def _split_of(file: Path, root: Path) -> str:
    """What `train-00000-of-00002.parquet`, `test.jsonl` or `train/0000.parquet` belong to; else `train`."""
    for name in reversed(file.relative_to(root).parts):
        if found := _SPLIT.match(name):
            return found[1]
    return "train"


def _chosen(splits: Sequence[str], wanted: str | None, path: Path) -> str:
    if wanted is not None and wanted not in splits:
        raise DataError(f"has no split {wanted!r}: it holds {', '.join(splits)}", file=str(path))
    if wanted is None and len(splits) > 1:
        raise DataError(
            f"holds the splits {', '.join(splits)}: say which with --split, or reading.split of a recipe",
            file=str(path),
        )
    return wanted or splits[0]


def _rows(file: Path) -> Rows:
    try:
        return TableRows(file) if parquet_or_arrow(file) else TextRows(file)
    except OSError as exc:
        raise DataError(f"cannot be read: {exc.strerror}", file=str(file)) from exc


# -- the format --------------------------------------------------------------------------------------


def _detected(rows: Sequence[Rows], path: Path) -> str:
    """By the keys of the first rows; those that cannot be read are reported later, by number."""
    found: list[JSON] = []
    problem: DataError | None = None
    for file, number in islice(_numbers(rows), LOOKED_AT):
        try:
            found.append(file.row(number).values)
        except DataError as exc:
            problem = problem or exc
    if not found and problem is not None:
        raise problem
    if not found:
        raise DataError("holds no rows: give a data set with at least one", file=str(path))
    try:
        return detect(found)
    except ValueError as exc:
        raise DataError(str(exc), file=str(path)) from exc


def _numbers(rows: Sequence[Rows]) -> Iterator[tuple[Rows, int]]:
    return ((held, number) for held in rows for number in range(len(held)))


def _description(file: Path) -> tuple[str | None, Columns]:
    """What LLaMA-Factory's dataset_info.json beside a file says of it, if there is one that does."""
    described = file.parent / DESCRIPTION
    try:
        held = json.loads(described.read_text("utf-8"))
    except (OSError, ValueError):
        return None, Columns()
    entries = [entry for entry in held.values() if isinstance(entry, dict)] if isinstance(held, dict) else []
    entry = next((entry for entry in entries if entry.get("file_name") == file.name), None)
    if entry is None:
        return None, Columns()
    named = {**(entry.get("columns") or {}), **(entry.get("tags") or {})}
    if entry.get("ranking") or {"chosen", "rejected", "kto_tag"} & set(named):
        raise DataError(
            f"{file.name} holds preferences, which are not read: give a data set with one answer a row",
            file=str(described),
        )
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt"):
        raise DataError(
            f"the formatting {excerpt(formatting)} of {file.name} is not read", file=str(described)
        )
    known = {key: str(name) for key, name in named.items() if key in Columns.__dataclass_fields__}
    return "llama-factory", replace(Columns(), **{**known, "formatting": formatting})


def _mapped(columns: Columns, names: Mapping[str, str]) -> Columns:
    try:
        return columns.changed(names)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


def _default_family(family: str | None) -> Family:
    try:
        return family_named(family)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
