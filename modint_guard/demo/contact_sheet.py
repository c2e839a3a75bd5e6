"""A contact sheet: every answer of a run with its picture, the truth and the verdict."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from modint_guard.data.item import Item, reply_for
from modint_guard.evaluation.runner import Row

COLUMNS = 8
PICTURE = 104
CELL = (168, 196)
COLOUR = {
    "flagged": (190, 60, 40),
    "pass": (40, 120, 60),
    "skipped": (110, 110, 110),
    "unscored": (150, 110, 20),
}


def draw(rows: Sequence[Row]) -> Image.Image:
    """One cell an answer, in the rows' order; the frame's colour is the verdict's."""
    height = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], height * CELL[1]), "white")
    for number, row in enumerate(rows):
        sheet.paste(_cell(row), ((number % COLUMNS) * CELL[0], (number // COLUMNS) * CELL[1]))
    return sheet


def _cell(row: Row) -> Image.Image:
    cell = Image.new("RGB", CELL, "white")
    canvas = ImageDraw.Draw(cell)
    verdict = row.verdict or "none"
    colour = COLOUR.get(verdict, (0, 0, 0))
    if row.item.image is not None:
        cell.paste(row.item.image.resize((PICTURE, PICTURE), Image.Resampling.NEAREST), (32, 6))
    canvas.rectangle((1, 1, CELL[0] - 2, CELL[1] - 2), outline=colour, width=2)
    for line, text in enumerate(_lines(row, verdict)):
        fill = colour if line == 4 else "black"
        canvas.text((6, PICTURE + 10 + 15 * line), text, fill=fill, font=ImageFont.load_default(size=11))
    return cell


def _lines(row: Row, verdict: str) -> tuple[str, ...]:
    item = row.item
    cause = (row.modint or {}).get("cause")
    return (
        _short(item.context or item.perturbation.replace("_", " ")),
        _short(item.question),
        f"truth {reply_for(item, item.answer)}{_named(item, item.answer)}",
        f"{row.model}: {row.answer}",
        f"{verdict}{f' ({cause})' if cause else ''}",
    )


def _named(item: Item, choice: str) -> str:
    return f" = {choice}" if item.form == "letter" else ""


def _short(text: str) -> str:
    return text if len(text) <= 27 else f"{text[:26]}…"
