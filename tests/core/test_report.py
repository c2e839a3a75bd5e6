"""The report: a finding on top, figures by hand, no network, bounded; no text of the data becomes markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from modint_guard.diagnosis import Found, Variant
from modint_guard.perturb import CLEAN, perturb
from modint_guard.report import (
    WORST,
    badness,
    diagnosis,
    finding,
    html,
    point,
    polygon,
    probability,
    shown,
    write_report,
)
from modint_guard.results import recorded
from tests.core.items import DIGIT
from tests.core.test_diagnosis import clean, lied


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
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "max-width: 40rem" in text


def test_the_page_is_bounded_whatever_the_number_of_items() -> None:
    small, large = read(page(WORST + 1, WORST + 1)), read(page(4 * WORST, 4 * WORST))
    assert small.tags.count("img") == large.tags.count("img") == WORST


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
