"""Rows of one's own, read in one way by a training, its record and its export."""

from pathlib import Path

from modint_guard.data import DataSet, read_data
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
