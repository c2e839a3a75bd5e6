"""The drawings that ship: one sheet a style, cells of 72 x 72 pixels with transparency; see NOTICE there."""

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

FOLDER = Path(__file__).parent / "sheets"
INDEX = FOLDER / "index.json"
SIDE, COLUMNS = 72, 32  # of a cell, in pixels; cells a row

HELD_OUT_STYLE = "twemoji"  # no training sees it
TRAINED_STYLES = ("noto", "noto-first", "fluent", "fluent-flat", "fluent-3d", "emojione")
STYLES = (*TRAINED_STYLES, HELD_OUT_STYLE)

Pixels = npt.NDArray[np.uint8]


@cache
def _index() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(INDEX.read_text("utf-8")))


@cache
def _sheet(style: str) -> Pixels:
    with Image.open(FOLDER / f"{style}.webp") as sheet:
        return np.asarray(sheet.convert("RGBA"))


@cache
def codes(style: str) -> tuple[str, ...]:
    """The emoji that a style has, things and extra classes, by code."""
    return tuple(_index()["styles"][style])


@cache
def _cells(style: str) -> dict[str, int]:
    return {code: number for number, code in enumerate(codes(style))}


def extra() -> dict[str, str]:
    """The classes beside the things, by code: nobody is asked about them, a tower may be fitted on them."""
    return dict(_index()["extra"])


def drawing(code: str, style: str) -> Pixels:
    """The drawing of an emoji in a style  # (72, 72, 4), uint8: RGB and opacity.

    Raises KeyError if the style has none.
    """
    if code not in _cells(style):
        raise KeyError(f"no drawing of {code} in the style {style}")
    row, column = divmod(_cells(style)[code], COLUMNS)
    return _sheet(style)[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]


@cache
def styles_of(code: str) -> tuple[str, ...]:
    """The trained styles that have the emoji."""
    return tuple(style for style in TRAINED_STYLES if code in _cells(style))
