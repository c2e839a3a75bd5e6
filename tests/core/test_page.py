"""The report's files: no network, bounded, and no text of the data becomes markup."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from modint_guard.data.perturb import CLEAN, perturb
from modint_guard.evaluation.diagnosis import THUMBNAIL, WORST, diagnosis_of, probability
from modint_guard.evaluation.page import (
    CARD_CHARACTERS,
    badness,
    cut,
    html,
    markdown,
    point,
    polygon,
    shown,
    write_report,
)
from modint_guard.evaluation.results import recorded
from modint_guard.evaluation.tables import Answer
from modint_guard.evaluation.variants import Variant
from modint_guard.types import NEUTRAL_IMAGE
from tests.core.items import DIGIT
from tests.core.test_diagnosis import believing
from tests.core.test_tables import clean, digit, lied


def page(count: int = 4, believed: int = 3) -> str:
    diagnosis = diagnosis_of({"m": believing(count, believed)}, data="d")
    return html(recorded("made", [0], diagnosis.rows), diagnosis)


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def read(text: str) -> Seen:
    seen = Seen()
    seen.feed(text)
    return seen


def test_cells_are_redder_where_less_is_right_or_more_has_moved() -> None:
    assert [badness("accuracy", 0.25), badness("js", 0.25), badness("js", None)] == [75, 25, 0]
    assert badness("text_preference", 1.0) == 0
    assert [shown(None), shown(0.123), shown(4)] == ["–", "12.3%", "4"]
    assert [shown(-0.1), shown(-0.0001), shown(-14.0)] == ["−10.0%", "0.0%", "< −100%"]
    assert [probability(0.45), probability(0.0074), probability(0.0)] == ["0.45", "0.0074", "< 0.0001"]


def test_the_page_needs_nothing_from_anywhere() -> None:
    text = page()
    seen = read(text)
    assert "script" not in seen.tags and "link" not in seen.tags
    assert seen.addresses and all(each.startswith("data:image/") for each in seen.addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "@media print" in text and "max-width: 40rem" in text
    assert "@media screen and (prefers-color-scheme: dark)" in text  # paper is white
    assert "loading=" not in text  # a picture that is not loaded yet is not printed


def test_the_page_is_bounded_whatever_the_number_of_items() -> None:
    small, large = read(page(WORST + 1, WORST + 1)), read(page(4 * WORST, 4 * WORST))
    assert small.tags.count("img") == large.tags.count("img") == WORST


def test_ten_thousand_items_of_long_texts_and_large_pictures_make_a_page_of_bounded_size() -> None:
    noise = random.Random(0).randbytes(400 * 300 * 3)
    picture = Image.frombytes("RGB", (400, 300), noise)  # the worst that a PNG can be made of
    given: list[Answer] = []
    for number in range(10_000):
        item = digit(number).replace(image=picture)
        told = item.replace(context="A long passage. " * 2000, perturbation="misleading_description")
        given += [
            Answer(Variant(item, CLEAN, 0), "3"),
            Answer(Variant(told, "misleading_description", 5), "7" if number % 2 else "3"),
        ]
    diagnosis = diagnosis_of({"m": given}, data="d")
    text = html(recorded("made", [0], diagnosis.rows), diagnosis)
    assert "m is right in 100% of 10000 clean" in text
    assert read(text).tags.count("img") == WORST
    thumbnail = 4 / 3 * (3 * THUMBNAIL * THUMBNAIL * 300 / 400)  # base64 of three bytes a pixel
    assert len(text.encode()) < WORST * (1.1 * thumbnail + 2 * CARD_CHARACTERS) + 30_000
    told_of = markdown(recorded("made", [0], diagnosis.rows), diagnosis)
    assert told_of.count("digit-") == WORST and len(told_of) < 20_000


def test_texts_of_the_data_stay_texts() -> None:
    evil = "<script>alert(1)</script>"
    item = perturb(DIGIT, "misleading_description").replace(context=evil)
    given = [
        Answer(Variant(DIGIT, CLEAN, 0), "3"),
        Answer(Variant(item, "misleading_description", 5), evil),
    ]
    diagnosis = diagnosis_of({evil: given}, data=evil)
    assert "script" not in read(html(recorded("made", [0], diagnosis.rows), diagnosis)).tags


def test_three_files_are_written_and_the_json_holds_no_pictures(tmp_path: Path) -> None:
    written = write_report(tmp_path, diagnosis_of({"m": believing(4, 3)}, data="d"), command="made", seed=2)
    assert [path.name for path in written] == ["report.json", "report.md", "report.html"]
    report = json.loads(written[0].read_text("utf-8"))
    assert (report["command"], report["seeds"], len(report["rows"])) == ("made", [2], 2)
    assert len(report["worst"]) == 3 and "image" not in report["worst"][0]
    assert "| misleading_description |" in written[1].read_text("utf-8")


def test_the_same_fact_as_picture_and_as_text_stands_in_all_three_files(tmp_path: Path) -> None:
    def captioned(number: int, text: str) -> Answer:
        item = perturb(digit(number), "true_description")
        return Answer(Variant(item, "true_description", 5), "3", cells={NEUTRAL_IMAGE: text})

    given = [clean(0), clean(1), clean(2), clean(3, "7")]
    given += [captioned(number, text) for number, text in enumerate(("3", "3", "7", "7"))]
    write_report(tmp_path, diagnosis_of({"m": given}, data="d"), command="made", seed=0)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    # Alike are the first two and the last; the last is wrong both times.
    assert report["consistency"] == [{"model": "m", "n": 4, "same": 0.75, "both_right": 0.5}]
    assert report["radar"]["m"]["same fact, same answer"] == 0.75
    told = (tmp_path / "report.md").read_text("utf-8")
    assert "| model | n | same | both_right |\n| --- | --- | --- | --- |\n| m | 4 | 0.750 | 0.500 |" in told
    page = (tmp_path / "report.html").read_text("utf-8")
    assert re.search(r"<h2>Same fact, same answer</h2>.*?>4<.*?>75.0%<.*?>50.0%<", page, re.DOTALL)


def test_the_markdown_holds_the_radar_and_the_answers_that_were_turned() -> None:
    given = [*believing(4, 3), lied(4, "7 | *or*\n<b>so</b>"), clean(4)]
    diagnosis = diagnosis_of({"m": given}, data="d")
    told = markdown(recorded("made", [0], diagnosis.rows), diagnosis)
    assert "| model | right when clean | right when disturbed |" in told
    question = "What digit is shown?"
    assert (
        f"| m | misleading_description | 5 | digit-0 | {question} | 3 | 3 | 7 | 1.000 |\n" in told
    )  # the options moved from certainty to certainty
    assert f"| digit-4 | {question} | 3 | 3 | 7 \\| \\*or\\* \\<b\\>so\\</b\\> | – |\n" in told
    many = diagnosis_of({"m": believing(4 * WORST, 4 * WORST)}, data="d")
    assert markdown(recorded("made", [0], many.rows), many).count("| digit-") == WORST


def test_texts_are_cut_where_they_are_too_long() -> None:
    assert [cut("abcdef", 6), cut("abcdefg", 6)] == ["abcdef", "abcd …"]


def test_rows_of_one_model_and_family_stand_under_one_line() -> None:
    given = believing(4, 3)
    diagnosis = diagnosis_of({"m": given, "n": given}, data="d")
    text = html(recorded("made", [0], diagnosis.rows), diagnosis)
    lines = re.findall(r'<tr class="group"><th colspan="\d+"><span>(.+?)</span>', text)
    assert lines == ["m · image-heavy", "n · image-heavy", "image-heavy"]  # the last: side by side


def test_the_radar_is_drawn_clockwise_from_the_top() -> None:
    assert point(0, 4, 1.0) == (0.0, -100.0) and point(1, 4, 0.5) == (50.0, 0.0)
    assert polygon([1.0, 0.5, 0.0, 1.0]) == "0,-100 50,0 0,0 -100,0"


def test_held_out_wordings_have_a_column_only_if_there_are_any() -> None:
    reworded = Answer(Variant(digit(9).replace(held_out_wording=True), CLEAN, 0), "7")
    assert "held out" not in page()
    diagnosis = diagnosis_of({"m": [*believing(4, 3), reworded]}, data="d")
    text = html(recorded("made", [0], diagnosis.rows), diagnosis)
    assert "<th class=word>held out</th>" in text and '<td class="word">wording</td>' in text


def test_without_captions_there_is_no_table_of_the_same_fact() -> None:
    diagnosis = diagnosis_of({"m": believing(4, 3)}, data="d")
    assert "Same fact" not in markdown(recorded("made", [0], diagnosis.rows), diagnosis)
