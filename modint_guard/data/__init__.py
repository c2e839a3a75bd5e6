"""Data sets and their items: reading, checking and writing them, and perturbing an item. Nothing here needs
torch.

item.py      one example: question, picture, text and the true answer
perturb.py   the registry of perturbations
severity.py  a perturbation in doses
dataset.py   a data set on disk as a sequence of items
formats.py   the formats of rows, and how each is read
samples.py   from a row to a checked item
pictures.py  pictures that are decoded only when they are needed
rows.py      rows of JSON and JSONL files
tables.py    rows of Parquet files and of folders that `datasets` saved
write.py     writes items so that they can be read back
options.py   the options of commands that read a data set
validate.py  the command `modint-guard data validate`
class_folders.py  folders of pictures by class as questions: the command `modint-guard data questions`
"""

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
