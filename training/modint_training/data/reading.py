"""The user's own data set, read the same way by training, run record, export and evaluation."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modint_guard.data import DataSet, read_data
from modint_guard.data.item import Item
from modint_guard.errors import ConfigError
from modint_training.recipe import ReadingConfig

PLAIN = ReadingConfig()  # no option: rows are read as they describe themselves


def read_examples(path: Path | str, how: ReadingConfig = PLAIN, *, check: bool = True) -> DataSet:
    """The examples of a data set in any format of docs/data.md; each is read when it is needed.

    Raises DataError for rows that cannot be read, at once if `check`, otherwise when they are needed.
    """
    return read_data(
        Path(path),
        format=how.format,
        family=how.family,
        split=how.split,
        image_root=Path(how.image_root) if how.image_root else None,
        columns=how.columns,
        number_rows=how.number_rows,
        check=check,
    )


def reading_of(**options: Any) -> ReadingConfig:
    """How a command's options say that rows are read; ConfigError for an invalid value."""
    try:
        return ReadingConfig(**options)
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        raise ConfigError(error["msg"].removeprefix("Value error, ")) from exc


def first_of_each(data: DataSet, count: int) -> list[Item]:
    """The first `count` labelled examples of each family; no other picture is decoded."""
    return [data[number] for number in numbers_of_each(data, count)]


def numbers_of_each(data: DataSet, count: int) -> list[int]:
    """The numbers of the first `count` labelled examples of each family."""
    counts: dict[str, int] = {}
    numbers = []
    for number, sample in enumerate(data.samples()):
        if sample.item.labelled:
            counts[sample.item.family] = counts.get(sample.item.family, 0) + 1
            if counts[sample.item.family] <= count:
                numbers.append(number)
    return numbers
