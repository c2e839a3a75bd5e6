"""A contact sheet: every answer of a run with its picture, the truth and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from modint_guard.data.item import Item, reply_for
from modint_guard.evaluation.runner import Row

COLUMNS = 8
WIDTH = 204  # of a cell, in pixels; its height follows from its caption
PICTURE = 120
MARGIN = 10
LINE = 17  # from one line of a caption to the next
BLACK, GREY = (20, 20, 20), (110, 110, 110)
COLOUR = {
    "flagged": (190, 60, 40),
    "pass": (40, 120, 60),
    "skipped": GREY,
    "unscored": (150, 110, 20),
}

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Text:
    """One line of a caption, short enough for a cell."""

    text: str
    colour: Colour


def draw(answers: Mapping[str, Sequence[Row]]) -> Image.Image:
    """One cell an answer, in the rows' order, `COLUMNS` side by side. The frame's colour is the verdict's.

    answers: by who or how was asked, which the captions name. These wrap, and a line of cells is as high as
    its longest caption needs.
    """
    rows = [row for of_label in answers.values() for row in of_label]
    captions = [caption(row, label) for label, of_label in answers.items() for row in of_label]
    lines = [range(first, min(first + COLUMNS, len(rows))) for first in range(0, len(rows), COLUMNS)]
    heights = [height(max(len(captions[number]) for number in line)) for line in lines]
    sheet = Image.new("RGB", (COLUMNS * WIDTH, sum(heights)), "white")
    for at, line in enumerate(lines):
        for column, number in enumerate(line):
            cell = _cell(rows[number], captions[number], heights[at])
            sheet.paste(cell, (column * WIDTH, sum(heights[:at])))
    return sheet


def height(lines: int) -> int:
    """The pixels that a cell with so many lines of caption is high."""
    return PICTURE + LINE * lines + 3 * MARGIN


def caption(row: Row, label: str) -> list[Text]:
    """The lines below a picture: kind of item, text, question, truth, answer and verdict."""
    item, cause = row.item, (row.modint or {}).get("cause")
    truth = f"truth: {reply_for(item, item.answer)}{_named(item, item.answer)}"
    answer = f"{label}: {row.answer} ({'right' if row.right else 'wrong'})"
    verdict = f"{row.verdict or 'no verdict'}{f' ({cause})' if cause else ''}"
    parts = (
        (item.perturbation.replace("_", " "), GREY),
        (item.context or "", BLACK),
        (item.question, BLACK),
        (truth, BLACK),
        (answer, BLACK),
        (verdict, _colour(row)),
    )
    return [Text(line, colour) for text, colour in parts for line in wrapped(text)]


def wrapped(text: str, width: int = WIDTH - 2 * MARGIN) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words, and within a word that is wider."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font().getlength(joined) <= width:
            lines[-1] = joined
            continue
        while font().getlength(word) > width:
            fits = next(end for end in range(len(word), 0, -1) if font().getlength(word[:end]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of captions: the one that comes with Pillow."""
    return ImageFont.load_default(size=13)


def _cell(row: Row, texts: Sequence[Text], pixels: int) -> Image.Image:
    cell = Image.new("RGB", (WIDTH, pixels), "white")
    canvas = ImageDraw.Draw(cell)
    if row.item.image is not None:
        picture = _fitted(row.item.image)
        cell.paste(picture, ((WIDTH - picture.width) // 2, MARGIN))
    canvas.rectangle((1, 1, WIDTH - 2, pixels - 2), outline=_colour(row), width=2)
    for number, line in enumerate(texts):
        place = (MARGIN, PICTURE + 2 * MARGIN + LINE * number)
        canvas.text(place, line.text, fill=line.colour, font=font())
    return cell


def _fitted(picture: Image.Image) -> Image.Image:
    """As large as fits: a small picture with its pixels to be seen, a large one smoothly."""
    scale = PICTURE / max(picture.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), how)


def _colour(row: Row) -> Colour:
    return COLOUR.get(row.verdict or "", BLACK)


def _named(item: Item, choice: str) -> str:
    return f" = {choice}" if item.form == "letter" else ""
