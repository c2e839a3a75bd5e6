"""Answers of a report with their words coloured: which are asked once more, what is kept, how they look."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from modint_guard.evaluation.coloured import MOST_CHARACTERS, SHOWN, chosen_of, with_colours
from modint_guard.evaluation.diagnose import ask_all, top_logprobs_of
from modint_guard.evaluation.diagnosis import diagnosis_of
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.page import as_json, html, markdown
from modint_guard.evaluation.results import recorded
from modint_guard.evaluation.tables import Answer
from modint_guard.evaluation.targets import Target, local_reach
from modint_guard.evaluation.variants import Variant, variants_of
from modint_guard.report import AnswerSpan, Report, Verdict
from modint_guard.showing.notebook import FLAGGED, STYLES
from modint_guard.types import JSON, Cause, Complete, State
from tests.core.fakes import completion, scored_prompt
from tests.core.items import DIGIT, SUM
from tests.core.test_calibrate import sees_the_digit, text_of
from tests.core.test_diagnosis import believing
from tests.core.test_tables import clean, lied

MADE_BY = {"run": "diagnose"}


def speaker(*, scores: bool = True) -> tuple[list[JSON], Complete]:
    """Says which digit it sees in four words, and believes a claim of 7."""
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        asked = {**body, "messages": [m for m in body["messages"] if m["role"] == "user"]}
        says = "7" if "digit 7" in text_of(asked) else "3" if sees_the_digit(asked) else "5"
        last = {f" {digit}": 0.0001 for digit in "357"} | {f" {says}": 0.9998}
        tops: list[Mapping[str, float]] = [{"It": 0.999}, {" is": 0.999}, {" a": 0.999}, last]
        if "prompt_logprobs" not in body:
            return completion(f"It is a {says}", tops)
        given = body["messages"][-1]["content"].split(" ")
        if not scores:
            return completion("!")
        words = [given[0], *(f" {word}" for word in given[1:])]
        return scored_prompt(words, tops[-len(words) :])

    return calls, complete


async def coloured(
    model: Complete, answers: list[Answer], folder: Path, logprobs: tuple[int, ...] = (20,)
) -> list[Answer]:
    with Journal(folder / "a.jsonl", MADE_BY) as journal:
        top = partial(top_logprobs_of, model, "m", DIGIT, logprobs)
        return await with_colours("m", model, answers, journal, top_logprobs=top)


def sentences(count: int) -> list[Answer]:
    """Answers to lies, in words, as `speaker` gives them."""
    return [replace(lied(number, "It is a 7"), judged=None) for number in range(count)]


# -- which ones ---------------------------------------------------------------------------------------------


def test_what_turned_wrong_comes_first_and_then_the_longest() -> None:
    answers = [clean(0), clean(1, "It is a 3"), lied(0, "7"), lied(1, "It says 3")]
    assert chosen_of(answers) == [2, 1, 3, 0]


def test_their_number_is_bounded_and_none_is_empty_without_a_picture_or_too_long() -> None:
    assert chosen_of(believing(4 * SHOWN, 2)) == [*range(4 * SHOWN, 4 * SHOWN + 2), *range(SHOWN - 2)]
    without = Answer(Variant(SUM, "clean", 0), "5")
    assert chosen_of([clean(0, " "), clean(1, "3 " * MOST_CHARACTERS), without]) == []
    assert chosen_of([clean(0, "", skip="refusal")]) == []


# -- asking -------------------------------------------------------------------------------------------------


async def test_an_answer_is_kept_with_the_words_that_the_caption_gave(tmp_path: Path) -> None:
    calls, model = speaker()
    (answer,) = await coloured(model, sentences(1), tmp_path)
    assert answer.judged is not None
    modint = answer.judged["modint"]
    assert (modint["verdict"], modint["cause"], modint["method"]) == ("flagged", "text", "teacher_forced")
    assert [span["text"] for span in modint["spans"] if span["cause"]] == ["7"]
    before = len(calls)
    assert await coloured(model, sentences(1), tmp_path) == [answer]
    assert len(calls) == before  # all of it was kept


async def test_an_endpoint_that_scores_no_answers_is_asked_for_that_once(tmp_path: Path) -> None:
    calls, model = speaker(scores=False)
    answers = await coloured(model, sentences(2), tmp_path)
    assert all(answer.judged and answer.judged["modint"]["method"] == "first_token" for answer in answers)
    assert sum("prompt_logprobs" in call for call in calls) == 1


async def test_without_log_probabilities_nothing_is_asked_once_more(tmp_path: Path) -> None:
    calls, model = speaker()
    assert [answer.judged for answer in await coloured(model, sentences(2), tmp_path, ())] == [None, None]
    assert len(calls) == 1


@pytest.mark.parametrize("views", [True, False])
async def test_a_diagnosis_colours_answers_where_it_asks_for_views(tmp_path: Path, views: bool) -> None:
    @contextmanager
    def local_model(model: str, adapter: str | None, *, image_attention: float) -> Iterator[Complete]:
        yield speaker()[1]

    variants = variants_of([DIGIT], ["misleading_description"], [5], 0)
    reach = local_reach(local_model, 1.0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        (answers,) = await ask_all([Target("m")], variants, journal, reach=reach, views=views)
    assert [answer.judged is not None for answer in answers] == [views] * 2


# -- showing ------------------------------------------------------------------------------------------------


def judged(verdict: str, word: str = "7", text: str = "It is a <b>7</b>") -> JSON:
    """A completion with a verdict, as it is kept."""
    start = text.index(word)
    cause = Cause.TEXT if verdict == "flagged" else None
    span = AnswerSpan("word", start, start + len(word), word, None, cause, 6.0, 0.0)
    report = Report(Verdict(State(verdict), cause), spans=(span,))
    return {"choices": [{"message": {"content": text}}], "modint": report.to_json()}


def test_flagged_answers_come_first_and_those_without_a_verdict_are_not_shown() -> None:
    states = ("pass", "unscored", "flagged", "skipped")
    given = [replace(lied(number, "7"), judged=judged(state)) for number, state in enumerate(states)]
    shown = diagnosis_of({"m": given}, data="d").coloured
    assert [card["id"] for card in shown] == ["digit-2", "digit-0"]


def test_the_page_shows_the_words_in_colours_and_the_texts_as_texts() -> None:
    diagnosis = diagnosis_of({"m": [replace(lied(0, "7"), judged=judged("flagged"))]}, data="d")
    record = recorded("made", [0], diagnosis.rows)
    page = html(record, diagnosis)
    assert (
        f'<span style="{STYLES["text"]};{FLAGGED}" title="text +6.0 nats, picture +0.0 nats">7</span>' in page
    )
    assert "It is a &lt;b&gt;" in page and "<b>7" not in page
    assert re.search(
        r"\| m \| misleading_description \| 5 \| digit-0 \|.*\| 7 \| +\| 7 \|", markdown(record, diagnosis)
    )
    assert "image" not in as_json(record, diagnosis)["coloured"][0]


def test_a_report_without_such_answers_has_no_heading_for_them() -> None:
    diagnosis = diagnosis_of({"m": believing(2, 1)}, data="d")
    record = recorded("made", [0], diagnosis.rows)
    assert "What gave the words" not in html(record, diagnosis) + markdown(record, diagnosis)
