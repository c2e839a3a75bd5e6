"""The user's own data set, read the same way by training, run record and export."""

from pathlib import Path

from modint_guard.data import DataSet, read_data
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
