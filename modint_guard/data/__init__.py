"""Data sets: readers of every format, what is wrong with one, and writers. Nothing here needs torch."""

from modint_guard.data.dataset import (
    ITEMS,
    DataSet,
    check_length,
    first_of_each,
    numbers_of_each,
    problems,
    read_data,
    read_items,
)
from modint_guard.data.formats import FORMATS, Columns
from modint_guard.data.pictures import Picture
from modint_guard.data.samples import Sample
from modint_guard.data.write import write_items, write_llava

__all__ = [
    "FORMATS",
    "ITEMS",
    "Columns",
    "DataSet",
    "Picture",
    "Sample",
    "check_length",
    "first_of_each",
    "numbers_of_each",
    "problems",
    "read_data",
    "read_items",
    "write_items",
    "write_llava",
]
