"""The report: a finding on top, figures by hand, no network, bounded; no text of the data becomes markup."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from modint_guard.data.perturb import CLEAN, perturb
from modint_guard.evaluation.report import (
    CARD_CHARACTERS,
    THUMBNAIL,
    WORST,
    badness,
    cut,
    diagnosis,
    finding,
    html,
    markdown,
    point,
    polygon,
    probability,
    shown,
    write_report,
)
from modint_guard.evaluation.results import recorded
from modint_guard.evaluation.tables import Found, Variant
from modint_guard.types import NEUTRAL_IMAGE
from tests.core.items import DIGIT
from tests.core.test_diagnosis import clean, digit, lied


def found(count: int, lies_believed: int) -> list[Found]:
    options = {True: {"3": 0.0, "7": 1.0}, False: {"3": 1.0, "7": 0.0}}
    believed = [n < lies_believed for n in range(count)]
    return [
        *(clean(n, options=options[False]) for n in range(count)),
        *(lied(n, "7" if b else "3", options=options[b]) for n, b in enumerate(believed)),
    ]


def page(count: int = 4, believed: int = 3) -> str:
    made = diagnosis({"m": found(count, believed)}, data="d")
    return html(recorded("made", [0], made.rows), made)


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


def test_the_finding_names_the_worst_and_what_it_does() -> None:
    made = diagnosis({"m": found(4, 3)}, data="d")
    assert made.finding == (
        "m is right in 100% of 4 clean image-heavy questions, and in 25% of them under "
        "misleading_description at severity 5, which harms it most.",
        "75% of its answers turn from right to wrong.",
    )


def test_a_second_model_is_the_second_sentence() -> None:
    made = diagnosis({"m": found(4, 4), "n": found(4, 0)}, data="d")
    assert made.finding[1].startswith("n is right in 100% there, a difference of +100% (95 % interval ")
    assert {row["model"] for row in made.rows} == {"m", "n"}


def test_clean_answers_alone_have_a_finding_too() -> None:
    made = diagnosis({"m": [clean(0), clean(1, "7")]}, data="d")
    assert finding(("m",), made.rows, [])[0] == "m is right in 50% of 2 clean questions."


def test_the_radar_by_hand() -> None:
    made = diagnosis({"m": found(4, 3)}, data="d")
    assert made.radar["m"] == {
        "right when clean": 1.0,
        "right when disturbed": 0.25,
        "not turned wrong": 0.25,
        "options unmoved": pytest.approx(0.25),
    }
    assert point(0, 4, 1.0) == (0.0, -100.0) and point(1, 4, 0.5) == (50.0, 0.0)
    assert polygon([1.0, 0.5, 0.0, 1.0]) == "0,-100 50,0 0,0 -100,0"


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
    given: list[Found] = []
    for number in range(10_000):
        item = digit(number).replace(image=picture)
        told = item.replace(context="A long passage. " * 2000, perturbation="misleading_description")
        given += [
            Found(Variant(item, CLEAN, 0), "3"),
            Found(Variant(told, "misleading_description", 5), "7" if number % 2 else "3"),
        ]
    made = diagnosis({"m": given}, data="d")
    text = html(recorded("made", [0], made.rows), made)
    assert "m is right in 100% of 10000 clean" in text
    assert read(text).tags.count("img") == WORST
    thumbnail = 4 / 3 * (3 * THUMBNAIL * THUMBNAIL * 300 / 400)  # base64 of three bytes a pixel
    assert len(text.encode()) < WORST * (1.1 * thumbnail + 2 * CARD_CHARACTERS) + 30_000
    told_of = markdown(recorded("made", [0], made.rows), made)
    assert told_of.count("digit-") == WORST and len(told_of) < 20_000


def test_the_furthest_moved_come_first() -> None:
    near = lied(1, "7", options={"3": 0.49, "7": 0.51})
    far = lied(0, "7", options={"3": 0.0, "7": 1.0})
    sure = {"3": 1.0, "7": 0.0}
    made = diagnosis({"m": [clean(0, options=sure), clean(1, options=sure), near, far]}, data="d")
    assert [each["id"] for each in made.worst] == ["digit-0", "digit-1"]


def test_texts_of_the_data_stay_texts() -> None:
    evil = "<script>alert(1)</script>"
    item = perturb(DIGIT, "misleading_description").replace(context=evil)
    given = [
        Found(Variant(DIGIT, CLEAN, 0), "3"),
        Found(Variant(item, "misleading_description", 5), evil),
    ]
    made = diagnosis({evil: given}, data=evil)
    assert "script" not in read(html(recorded("made", [0], made.rows), made)).tags


def test_three_files_are_written_and_the_json_holds_no_pictures(tmp_path: Path) -> None:
    written = write_report(tmp_path, {"m": found(4, 3)}, command="made", seed=2, data="d")
    assert [path.name for path in written] == ["report.json", "report.md", "report.html"]
    report = json.loads(written[0].read_text("utf-8"))
    assert (report["command"], report["seeds"], len(report["rows"])) == ("made", [2], 2)
    assert len(report["worst"]) == 3 and "image" not in report["worst"][0]
    assert "| misleading_description |" in written[1].read_text("utf-8")


def test_weak_methods_and_skipped_answers_are_said() -> None:
    given = [clean(0, method="regenerated"), lied(0, "", skip="empty_answer")]
    notes = " ".join(diagnosis({"m": given}, data="d").notes)
    assert "m gave no log-probabilities" in notes
    assert "1 of 2 answers of m were empty" in notes


def test_the_same_fact_as_picture_and_as_text_stands_in_all_three_files(tmp_path: Path) -> None:
    def captioned(number: int, text: str) -> Found:
        item = perturb(digit(number), "true_description")
        return Found(Variant(item, "true_description", 5), "3", cells={NEUTRAL_IMAGE: text})

    given = [clean(0), clean(1), clean(2), clean(3, "7")]
    given += [captioned(number, text) for number, text in enumerate(("3", "3", "7", "7"))]
    write_report(tmp_path, {"m": given}, command="made", seed=0, data="d")
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    # Alike are the first two and the last; the last is wrong both times.
    assert report["consistency"] == [{"model": "m", "n": 4, "same": 0.75, "both_right": 0.5}]
    assert report["radar"]["m"]["same fact, same answer"] == 0.75
    told = (tmp_path / "report.md").read_text("utf-8")
    assert "| model | n | same | both_right |\n| --- | --- | --- | --- |\n| m | 4 | 0.750 | 0.500 |" in told
    page = (tmp_path / "report.html").read_text("utf-8")
    assert re.search(r"<h2>Same fact, same answer</h2>.*?>4<.*?>75.0%<.*?>50.0%<", page, re.DOTALL)


def test_without_captions_nothing_is_said_of_the_same_fact() -> None:
    made = diagnosis({"m": found(4, 3)}, data="d")
    assert made.consistency == []
    assert "Same fact" not in markdown(recorded("made", [0], made.rows), made)


def test_the_markdown_holds_the_radar_and_the_answers_that_were_turned() -> None:
    given = [*found(4, 3), lied(4, "7 | *or*\n<b>so</b>"), clean(4)]
    made = diagnosis({"m": given}, data="d")
    told = markdown(recorded("made", [0], made.rows), made)
    assert "| model | right when clean | right when disturbed |" in told
    question = "What digit is shown?"
    assert (
        f"| m | misleading_description | 5 | digit-0 | {question} | 3 | 3 | 7 | 1.000 |\n" in told
    )  # the options moved from certainty to certainty
    assert f"| digit-4 | {question} | 3 | 3 | 7 \\| \\*or\\* \\<b\\>so\\</b\\> | – |\n" in told
    many = diagnosis({"m": found(4 * WORST, 4 * WORST)}, data="d")
    assert markdown(recorded("made", [0], many.rows), many).count("| digit-") == WORST


def test_texts_are_cut_where_they_are_too_long() -> None:
    assert [cut("abcdef", 6), cut("abcdefg", 6)] == ["abcdef", "abcd …"]


def test_rows_of_one_model_and_family_stand_under_one_line() -> None:
    given = found(4, 3)
    made = diagnosis({"m": given, "n": given}, data="d")
    text = html(recorded("made", [0], made.rows), made)
    lines = re.findall(r'<tr class="group"><th colspan="\d+"><span>(.+?)</span>', text)
    assert lines == ["m · image-heavy", "n · image-heavy", "image-heavy"]  # the last: side by side
