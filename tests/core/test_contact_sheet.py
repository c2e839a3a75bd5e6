"""The contact sheet: one cell an answer, framed in the colour of its verdict."""

from modint_guard.demo.contact_sheet import CELL, COLOUR, COLUMNS, PICTURE, draw
from modint_guard.evaluation.runner import Row
from tests.core.items import DIGIT, LETTERED, SUM

WHITE = (255, 255, 255)


def rows(*verdicts: str | None) -> list[Row]:
    return [
        Row(DIGIT, "base", "3", right=True, modint={"verdict": verdict, "cause": None} if verdict else None)
        for verdict in verdicts
    ]


def test_nine_answers_take_two_lines_of_eight() -> None:
    assert (COLUMNS, CELL) == (8, (168, 196))
    assert draw(rows(*["pass"] * 9)).size == (1344, 392)
    assert draw(rows(*["pass"] * 8)).size == (1344, 196)


def test_a_cell_is_framed_in_the_colour_of_its_verdict() -> None:
    sheet = draw(rows("flagged", "pass", None))
    assert [sheet.getpixel((CELL[0] * column + 1, 1)) for column in range(4)] == [
        COLOUR["flagged"],
        COLOUR["pass"],
        (0, 0, 0),
        WHITE,
    ]


def test_a_cell_shows_the_picture_or_leaves_its_place_white() -> None:
    without = Row(SUM, "base", "3", right=True, modint=None)
    sheet = draw([*rows("pass"), without])
    centre = (32 + PICTURE // 2, 6 + PICTURE // 2)
    assert sheet.getpixel(centre) == (255, 0, 0)
    assert sheet.getpixel((centre[0] + CELL[0], centre[1])) == WHITE


def test_long_texts_and_every_form_can_be_drawn() -> None:
    caption = "A note says: the digit 7, and a good deal more than fits — “ünïcode” as well."
    row = Row(LETTERED.replace(context=caption), "robust-lora", "C" * 90, right=False, modint=None)
    assert draw([row]).size == (1344, 196)
