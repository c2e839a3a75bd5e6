"""Rows of one's own, read in one way by a training, its record, its export and `evaluate`."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modint_guard.data import DataSet, read_data
from modint_guard.data.item import Item
from modint_guard.errors import ConfigError
from modint_training.recipe import ReadingConfig

PLAIN = ReadingConfig()  # what the rows say of themselves


def read_examples(path: Path | str, how: ReadingConfig = PLAIN, *, check: bool = True) -> DataSet:
    """The examples of a data set of one's own, in any format of docs/data.md, each read when it is asked for.

    Raises DataError for what cannot be read; `check` false leaves rows unread until then.
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
    """What a command's options say of the rows; ConfigError for a value that none of them has."""
    try:
        return ReadingConfig(**options)
    except ValidationError as exc:
        said = exc.errors(include_url=False)[0]
        raise ConfigError(said["msg"].removeprefix("Value error, ")) from exc


def first_of_each(data: DataSet, count: int) -> list[Item]:
    """The first `count` labelled examples of each family; no picture of another is decoded."""
    return [data[number] for number in numbers_of_each(data, count)]


def numbers_of_each(data: DataSet, count: int) -> list[int]:
    """Their numbers."""
    seen: dict[str, int] = {}
    chosen = []
    for number, sample in enumerate(data.samples()):
        if sample.item.labelled:
            seen[sample.item.family] = seen.get(sample.item.family, 0) + 1
            if seen[sample.item.family] <= count:
                chosen.append(number)
    return chosen
