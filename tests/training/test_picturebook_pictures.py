"""The picture-book's drawings, pictures and documents: what ships, under which licences, how large."""

import json
from pathlib import Path

import numpy as np
import pytest

from modint_guard.data.item import is_right, prompt
from modint_guard.data.perturb import seeded
from modint_training.picturebook import draw, drawings, suite
from modint_training.picturebook.desk import Unseen
from modint_training.picturebook.documents import documents
from modint_training.picturebook.drawings import FOLDER, HELD_OUT_STYLE, STYLES, TRAINED_STYLES
from modint_training.picturebook.things import NAMED, THINGS

NOTICE = (FOLDER / "NOTICE").read_text("utf-8")


@pytest.mark.parametrize("style", STYLES)
def test_every_sheet_is_named_in_the_notice(style: str) -> None:
    assert f"{style}.webp" in NOTICE


def test_the_notice_names_licences_and_holders_and_no_share_alike() -> None:
    for named in (
        "Apache License 2.0",
        "MIT License",
        "Attribution 4.0",
        "Google",
        "Microsoft",
        "Twitter",
        "EmojiOne",
    ):
        assert named in NOTICE
    assert "ShareAlike" not in NOTICE and "SA-4.0" not in NOTICE


def test_the_sheets_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6 * 2**20


def test_every_thing_is_drawn_in_the_style_kept_out_and_in_several_trained_ones() -> None:
    for thing in THINGS:
        assert drawings.drawing(thing.code, HELD_OUT_STYLE).shape == (72, 72, 4)
        assert len(drawings.styles_of(thing.code)) >= 3
        assert HELD_OUT_STYLE not in drawings.styles_of(thing.code)


def test_drawings_fill_their_cells_and_leave_the_ground_clear() -> None:
    for thing in THINGS[::5]:
        for style in drawings.styles_of(thing.code):
            opacity = drawings.drawing(thing.code, style)[..., 3]
            filled = (opacity > 128).mean()
            assert 0.1 < filled < 0.95, (thing.name, style)


def test_no_two_things_share_a_drawing() -> None:
    seen = {drawings.drawing(thing.code, HELD_OUT_STYLE).tobytes() for thing in THINGS}
    assert len(seen) == len(THINGS)


def test_a_style_that_lacks_a_thing_says_so() -> None:
    with pytest.raises(KeyError, match="no drawing of 1f512 in the style fluent"):
        drawings.drawing("1f512", "fluent")


def test_the_extra_classes_are_no_things_and_only_in_trained_styles() -> None:
    extra = drawings.extra()
    assert len(extra) > 400 and not set(extra) & {thing.code for thing in THINGS}
    assert not set(extra) & set(drawings.codes(HELD_OUT_STYLE))


def test_the_index_counts_the_cells_of_each_sheet() -> None:
    index = json.loads(Path(drawings.INDEX).read_text("utf-8"))
    for style in STYLES:
        rows = drawings._sheet(style).shape[0] // index["side"]
        assert (rows - 1) * index["columns"] < len(index["styles"][style]) <= rows * index["columns"]


def test_pictures_have_one_size_and_show_something() -> None:
    for unseen in (Unseen(), Unseen(style=True)):
        for item in suite.items("image-heavy", "test", 26, unseen=unseen):
            assert item.image is not None and item.image.size == (draw.SIZE, draw.SIZE)
            assert np.asarray(item.image).std() > 5


def test_a_style_kept_out_gives_other_pictures() -> None:
    fox = NAMED["fox"]
    pictures = [draw.picture(fox, seeded(1), style=style).tobytes() for style in STYLES]
    assert len(set(pictures)) == len(STYLES) == len(TRAINED_STYLES) + 1


def test_several_things_stand_side_by_side() -> None:
    fox, drum = NAMED["fox"], NAMED["drum"]
    scene = np.asarray(draw.scene([fox, drum], seeded(3), styles=["noto", "noto"]), dtype=float)
    left, right = scene[:, : draw.SIZE // 2], scene[:, draw.SIZE // 2 :]
    assert left.std() > 10 and right.std() > 10


def test_a_poor_picture_loses_most_of_its_detail() -> None:
    clear = draw.picture(NAMED["zebra"], seeded(5), style="noto")
    for seed in range(12):
        poor = draw.poor(clear, seeded(seed))
        assert poor.size == clear.size and poor.tobytes() != clear.tobytes()


def test_a_card_shows_its_number() -> None:
    assert draw.card("7").tobytes() != draw.card("8").tobytes()


# Documents


def test_documents_come_in_four_kinds_and_three_surroundings() -> None:
    items = documents("test", 24)
    assert {item.task for item in items} == {"receipt", "letter", "chart", "screen"}
    assert {item.perturbation for item in items} == {"clean", "neutral_text", "true_description"}
    assert items == documents("test", 24) != documents("test", 24, seed=1)
    assert {item.family for item in items} == {"image-heavy"}


def test_the_words_beside_a_document_mislead_nobody() -> None:
    for item in documents("test", 60):
        assert is_right(item, item.answer) and is_right(item, f"It says {item.answer}.")
        assert item.wrong == "" and item.lie == ""
        if item.perturbation == "true_description" and item.task in ("receipt", "letter", "chart"):
            assert item.answer in prompt(item)
        if item.perturbation == "neutral_text":
            assert item.answer not in (item.context or "")


def test_a_document_holds_ink_on_paper() -> None:
    for item in documents("test", 8):
        assert item.image is not None and item.image.width >= 300
        assert 0.003 < (np.asarray(item.image.convert("L")) < 90).mean() < 0.3
