"""The contact sheet: one cell an answer, framed in the colour of its verdict, its caption wrapped."""

from modint_guard.demo.contact_sheet import (
    COLOUR,
    COLUMNS,
    LINE,
    MARGIN,
    PICTURE,
    WIDTH,
    caption,
    draw,
    font,
    height,
    wrapped,
)
from modint_guard.evaluation.runner import Row
from tests.core.items import DIGIT, LETTERED, SUM

WHITE = (255, 255, 255)
LONG = "A note says: the digit 7, and a good deal more than fits — “ünïcode” as well."


def rows(*verdicts: str | None) -> list[Row]:
    return [
        Row(DIGIT, "base", "3", right=True, modint={"verdict": verdict, "cause": None} if verdict else None)
        for verdict in verdicts
    ]


def lines(row: Row) -> list[str]:
    return [line.text for line in caption(row, row.model)]


def test_a_caption_names_kind_question_truth_answer_and_verdict() -> None:
    (row,) = rows("pass")
    assert lines(row) == ["clean", "What digit is shown?", "truth: 3", "base: 3 (right)", "pass"]
    assert caption(row, row.model)[-1].colour == COLOUR["pass"]


def test_a_letter_is_named_and_a_cause_stands_beside_the_verdict() -> None:
    modint = {"verdict": "flagged", "cause": "text"}
    row = Row(LETTERED.replace(context="A 5."), "base", "B", right=False, modint=modint)
    assert lines(row)[1:] == [
        "A 5.",
        "What digit is shown?",
        "truth: C = 3",
        "base: B (wrong)",
        "flagged (text)",
    ]


def test_a_long_caption_is_wrapped_and_loses_no_word() -> None:
    parts = wrapped(LONG)
    assert len(parts) > 1
    assert " ".join(parts) == LONG
    assert max(font().getlength(part) for part in parts) <= WIDTH - 2 * MARGIN


def test_a_word_wider_than_the_cell_is_broken() -> None:
    parts = wrapped("C" * 90)
    assert "".join(parts) == "C" * 90
    assert max(font().getlength(part) for part in parts) <= WIDTH - 2 * MARGIN


def test_nine_answers_take_two_lines_of_eight() -> None:
    assert height(5) == PICTURE + 5 * LINE + 3 * MARGIN
    assert draw({"base": rows(*["pass"] * 8)}).size == (COLUMNS * WIDTH, height(5))
    assert draw({"base": rows(*["pass"] * 9)}).size == (COLUMNS * WIDTH, 2 * height(5))


def test_a_line_of_cells_is_as_high_as_its_longest_caption() -> None:
    long = Row(DIGIT.replace(context=LONG), "base", "3", right=True, modint=None)
    assert draw({"base": rows("pass"), "other": [long]}).height == height(5 + len(wrapped(LONG)))


def test_a_cell_is_framed_in_the_colour_of_its_verdict() -> None:
    sheet = draw({"base": rows("flagged", "pass", None)})
    assert [sheet.getpixel((WIDTH * column + 1, 1)) for column in range(4)] == [
        COLOUR["flagged"],
        COLOUR["pass"],
        (20, 20, 20),
        WHITE,
    ]


def test_a_cell_shows_the_picture_or_leaves_its_place_white() -> None:
    without = Row(SUM, "base", "3", right=True, modint=None)
    sheet = draw({"base": [*rows("pass"), without]})
    centre = (WIDTH // 2, MARGIN + PICTURE // 2)
    assert sheet.getpixel(centre) == (255, 0, 0)
    assert sheet.getpixel((centre[0] + WIDTH, centre[1])) == WHITE
