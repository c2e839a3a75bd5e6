"""A data set on disk as a sequence of items, each of which is read and decoded when it is needed."""

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
from modint_guard.data.samples import Reading, Sample, family_named, read_sample
from modint_guard.data.tables import TableRows, parquet_or_arrow, saved_files, saved_splits
from modint_guard.errors import ConfigError, DataError
from modint_guard.types import JSON

ITEMS = "items.jsonl"  # what `write_items` writes
LOOKED_AT = 1000  # the number of rows whose keys are looked at to detect the format
DESCRIPTION = "dataset_info.json"  # of LLaMA-Factory; save_to_disk writes another file of this name
_DESCRIBED_ABOVE = 3  # so many folders, from the file's own upwards, may hold the description
_TEXT_SUFFIXES = (".json", ".jsonl")
_SUFFIXES = (*_TEXT_SUFFIXES, ".parquet", ".arrow")
_SPLIT = re.compile(r"^(train|validation|valid|val|dev|test|eval)(?![a-z])")


class DataSet(Sequence[Item]):
    """The items of a data set by number, with their pictures; `samples` gives them without decoding a
    picture.

    Only the place of each row is kept in memory, and the object may be shared with worker processes. Indexing
    raises DataError if a row or its picture cannot be used, and IndexError for a number out of range.
    """

    def __init__(self, files: Sequence[Rows], reading: Reading) -> None:
        self._files = files
        self._firsts = [0, *accumulate(len(rows) for rows in files)]
        self.reading = reading

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the rows."""
        return tuple(rows.file for rows in self._files)

    @property
    def format(self) -> str:
        """The rows' format, detected by their keys or named by the caller."""
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
        return (sample.load() for sample in self.samples())

    def sample(self, number: int) -> Sample:
        """Item `number`, its pictures not yet decoded. Raises DataError and IndexError."""
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return read_sample(self.row(number), number, self.reading)

    def row(self, number: int) -> Row:
        """Row `number` as it is in its file. Raises DataError."""
        file = bisect_right(self._firsts, number) - 1
        return self._files[file].row(number - self._firsts[file])

    def samples(self) -> Iterator[Sample]:
        """Every item in turn, no picture decoded, so that families and labels cost little."""
        return (self.sample(number) for number in range(len(self)))

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the files that hold the rows, in order; without picture files."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()


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

    format: one of `FORMATS`; None detects it by the rows' keys. image_root: the folder of pictures with
    relative paths; None for that of the file. split: which one, of a folder with several. family: of rows
    that do not name theirs. columns: the rows' own column names, by LLaMA-Factory's. number_rows: name
    samples by the number of their row, whatever their `id`. limits: of the pictures. check: read every row
    now (no picture is decoded) and raise the first problem, rather than in the middle of a run. Raises
    DataError with file, line, sample id and remedy, and ConfigError for a wrong option.
    """
    files = data_files(path, split)
    rows = [_rows(file) for file in files]
    described, mapped = _description(files[0]) if format in (None, "llama-factory") else (None, Columns())
    mapped = _mapped(mapped, columns or {})
    if format is not None and format not in FORMATS:
        raise ConfigError(f"no format {format!r}: name one of {', '.join(FORMATS)}")
    reading = Reading(
        format=format or described or ("llama-factory" if columns else _detected(rows, path)),
        columns=mapped,
        image_root=image_root or files[0].parent,
        limits=limits or ImageLimits(),
        family=_default_family(family),
        number_rows=number_rows,
    )
    data = DataSet(rows, reading)
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
    """The first `count` labelled items of each family; only their pictures are decoded."""
    return [data[number] for number in numbers_of_each(data, count)]


def numbers_of_each(data: DataSet, count: int) -> list[int]:
    """The numbers, from 0, of the first `count` labelled items of each family."""
    counts: Counter[str] = Counter()
    numbers = []
    for number, sample in enumerate(data.samples()):
        if sample.item.labelled:
            counts[sample.item.family] += 1
            if counts[sample.item.family] <= count:
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
    `check_length` with a model's tokenizer; they run only with `pictures`. seen: called with each readable
    sample.
    """
    firsts: dict[str, tuple[int, str]] = {}  # by id, the first row with it: its number and its place in words
    for number in range(len(data)):
        try:
            sample = data.sample(number)
        except DataError as problem:
            yield problem
            continue
        seen(sample)
        place = f"line {sample.row.line} of {sample.row.file.name}"
        first, first_place = firsts.setdefault(sample.item.id, (number, place))
        if first != number:
            yield sample.row.error(
                f"its id is that of {first_place} too: make ids unique, or have the rows numbered "
                "(--number-rows, reading.number_rows of a recipe)",
                sample.item.id,
            )
        if pictures:
            yield from _picture_problems(sample, checks)


def _picture_problems(sample: Sample, checks: Sequence[Callable[[Item], None]]) -> Iterator[DataError]:
    """The first problem of a sample once its pictures are decoded, if there is one."""
    try:
        item = sample.item.replace(**{name: picture.load() for name, picture in sample.pictures.items()})
        for check in checks:
            check(item)
    except DataError as problem:
        yield sample.row.error(problem.problem, sample.item.id)


def check_length(
    item: Item, tokens: Callable[[Item], Sequence[int]], image_token: int, max_length: int
) -> None:
    """Raises DataError for an item of more than `max_length` tokens. Truncated, it could lose a part of its
    picture, and the model would learn from a picture that it does not see (a defect of the reference code).

    tokens: the token ids of an item, with the placeholders of its picture expanded. image_token: the id of
    these placeholders.
    """
    ids = tokens(item)
    if len(ids) > max_length:
        of_picture = sum(token == image_token for token in ids)
        raise DataError(
            f"it takes {len(ids)} tokens, {of_picture} of them its picture's, and {max_length} are allowed: "
            "raise the maximum length, shorten the text or scale the picture down; nothing is cut off",
            sample=item.id,
        )


# -- finding files -----------------------------------------------------------------------------------


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """The files that hold the rows of the data set at `path`.

    split: which split, of a folder with several. Raises DataError if there is no data set, or if the folder
    leaves open which file or split is meant; ConfigError for a split of a single file.
    """
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
    """The split of a file such as `train-00000-of-00002.parquet`, `test.jsonl` or `train/0000.parquet`;
    `train` if its name does not tell.
    """
    for name in reversed(file.relative_to(root).parts):
        if match := _SPLIT.match(name):
            return match[1]
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
    """The format by the keys of the first rows. Unreadable rows are passed over, unless all of them are."""
    readable: list[JSON] = []
    problem: DataError | None = None
    for file, number in islice(_numbers(rows), LOOKED_AT):
        try:
            readable.append(file.row(number).values)
        except DataError as exc:
            problem = problem or exc
    if not readable and problem is not None:
        raise problem
    if not readable:
        raise DataError("holds no rows: give a data set with at least one", file=str(path))
    try:
        return detect(readable)
    except ValueError as exc:
        raise DataError(str(exc), file=str(path)) from exc


def _numbers(files: Sequence[Rows]) -> Iterator[tuple[Rows, int]]:
    return ((rows, number) for rows in files for number in range(len(rows)))


def _description(file: Path) -> tuple[str | None, Columns]:
    """Format and columns of a file by the LLaMA-Factory dataset_info.json beside or above it; None and the
    default columns if none lists the file.
    """
    described = ((folder / DESCRIPTION, _entry(folder, file)) for folder in file.parents[:_DESCRIBED_ABOVE])
    description, entry = next((pair for pair in described if pair[1] is not None), (file, None))
    if entry is None:
        return None, Columns()
    named = {**(entry.get("columns") or {}), **(entry.get("tags") or {})}
    if entry.get("ranking") or {"chosen", "rejected", "kto_tag"} & set(named):
        raise DataError(
            f"{file.name} holds preferences, which are not read: give a data set with one answer a row",
            file=str(description),
        )
    if media := {"videos", "audios"} & set(named):
        raise DataError(
            f"{file.name} holds {' and '.join(sorted(media))}, which are not read: leave such rows and the "
            "column out",
            file=str(description),
        )
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise DataError(
            f"the formatting {excerpt(formatting)} of {file.name} is not read", file=str(description)
        )
    known = {key: str(name) for key, name in named.items() if key in Columns.__dataclass_fields__}
    return "llama-factory", replace(Columns(), **{**known, "formatting": formatting})


def _entry(folder: Path, file: Path) -> JSON | None:
    """What the dataset_info.json of a folder says about a file in it or below it; None without any."""
    try:
        document = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    values = document.values() if isinstance(document, dict) else ()
    name = file.relative_to(folder).as_posix()
    entries = (entry for entry in values if isinstance(entry, dict))
    return next((entry for entry in entries if entry.get("file_name") == name), None)


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
