"""The bench of spans: what counts as found, what the simple rules mark, and a small run up to its tables."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from bench.spans.cases import FORMS, LYING, TRUE, SpanCase, cases, has_hue, shows
from bench.spans.intervals import at_most, interval
from bench.spans.lengths import ask_long, harmless
from bench.spans.marks import BOTH, DIFFERS, IN_CONTEXT, INFLUENCE, SPANS, Counted, counted, marks, mention_of
from bench.spans.measure import (
    STREAMED,
    WHOLE,
    Setup,
    ask_case,
    case_jobs,
    figures,
    length_rows,
    long_jobs,
    nulls_measured,
    span_rows,
    write_tables,
)
from modint_guard.evaluation.runner import request_for
from modint_guard.types import JSON, Complete
from tests.core.fakes import completion, guarded, scored_prompt
from tests.server.fake_upstream import is_grey

ANSWER, CLEAN, CAPTION = "A red fox and a drum.", "A red cat and a drum.", "Seen here: a red fox and a drum."
QUESTION = "What does the picture show?"


def said(answer: str, pieces: list[tuple[int, int]]) -> list[str]:
    return [answer[a:b] for a, b in pieces]


# -- what is counted ----------------------------------------------------------------------------------------


def test_a_mention_is_the_first_one_of_what_was_claimed_unless_the_clean_answer_names_it_too() -> None:
    assert mention_of("A fox, a Fox!", CLEAN, ("fox",)) == (2, 5)
    assert mention_of("A foxglove", CLEAN, ("fox",)) is None
    assert mention_of(ANSWER, "Maybe a fox", ("fox",)) is None
    assert mention_of("An ice cream cone", "", ("ice cream cone", "ice cream")) == (3, 17)


def test_one_word_of_the_mention_suffices_and_every_other_marked_word_is_false() -> None:
    assert counted(ANSWER, CLEAN, ("red fox",), [(2, 5), (6, 9), (16, 20)]) == Counted(1, 1, 1)
    assert counted(ANSWER, CLEAN, ("fox",), [(2, 5)]) == Counted(1, 0, 1)
    assert counted("An owl.", CLEAN, ("owl",), [(0, 2)]) == Counted(1, 0, 0)  # its article
    assert counted("An owl.", CLEAN, ("owl",), [(0, 2), (3, 6)]) == Counted(1, 1, 0)
    assert counted(ANSWER, CLEAN, ("owl",), [(6, 9)]) == Counted(0, 0, 1)


def test_the_rules_mark_what_they_say() -> None:
    by_rule = marks(ANSWER, CLEAN, CAPTION, QUESTION, None)
    assert said(ANSWER, by_rule[IN_CONTEXT]) == ["red", "fox", "drum"]
    assert said(ANSWER, by_rule[DIFFERS]) == said(ANSWER, by_rule[BOTH]) == ["fox"]
    assert by_rule[SPANS] == []


def test_of_json_the_rules_read_values_only() -> None:
    record, clean = '{"fox": "a fox", "n": 2}', '{"fox": "a cat", "n": 3}'
    by_rule = marks(record, clean, "a fox", QUESTION, None)
    assert by_rule[IN_CONTEXT] == [(11, 14)]
    assert said(record, by_rule[DIFFERS]) == ["fox", "2"]


def test_spans_mark_flagged_words_and_leaves_of_one_word() -> None:
    def span(
        kind: str, start: int, end: int, path: str, cause: str | None = "text", nats: float = 5.0
    ) -> JSON:
        influence = {"text": nats, "image": 4.0}
        return {
            "kind": kind,
            "start": start,
            "end": end,
            "path": path,
            "cause": cause,
            "influence": influence,
        }

    spans = [
        span("leaf", 0, 9, "/a"),
        span("word", 4, 9, "/a"),
        span("claim", 0, 9, "/a"),
        span("leaf", 20, 23, "/b", nats=3.0),
        span("word", 30, 33, "/c", None),
    ]
    by_rule = marks(ANSWER, CLEAN, "", "", {"spans": spans})
    assert by_rule[SPANS] == [(4, 9), (20, 23)]
    assert by_rule[INFLUENCE] == [(4, 9), (30, 33)]


def test_precision_recall_and_f1_are_those_of_all_answers_together() -> None:
    row = figures(
        [
            {"mentions": 1, "found": 1, "false": 0},
            {"mentions": 1, "found": 0, "false": 1},
            {"mentions": 0, "found": 0, "false": 0},
        ]
    )
    assert (row["precision"], row["recall"], row["f1"]) == (0.5, 0.5, 0.5)
    nothing = figures([{"mentions": 1, "found": 0, "false": 0}])
    assert (nothing["precision"], nothing["recall"], nothing["f1"]) == (None, 0.0, 0.0)
    assert figures([{"mentions": 0, "found": 0, "false": 2}])["f1"] is None


def test_intervals_hold_at_the_edge() -> None:
    assert interval(0, 0) == (None, None) and at_most(0, 0) is None
    assert interval(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert at_most(0, 149) == pytest.approx(1 - 0.05 ** (1 / 149))


# -- the cases ----------------------------------------------------------------------------------------------


def test_every_form_is_lied_to_and_told_the_truth_in_trained_and_in_other_words() -> None:
    found = list(cases("picturebook", 2, 0))
    kinds = {(case.form, case.kind, case.wording) for case in found}
    assert {form for form, *_ in kinds} == set(FORMS)
    assert len(found) == 2 * len(kinds) == 2 * len(FORMS) * 2 * 2
    assert len({case.key for case in found}) == len(found)
    for case in found:
        caption = (case.item.context or "").replace("_", " ")
        if case.form == "detail":  # both captions name the colour; only the lie says that the thing has it
            said = mention_of(caption, "", [f"{case.claimed[0]} {case.clean.answer}"])
        else:
            said = mention_of(caption, "", case.claimed)
        assert (said is not None) == (case.kind == LYING), (case.key, caption, case.claimed)
        assert case.clean.context is None


def test_a_detail_that_a_lie_gives_is_a_colour_of_which_the_picture_has_nothing() -> None:
    found = [case for case in cases("picturebook", 10, 0) if case.form == "detail"]
    for case in found:
        assert case.clean.image is not None and not has_hue(case.clean.image, case.claimed[0])
        assert case.claimed[0] in (case.item.context or "").lower()
    assert has_hue(Image.new("RGB", (8, 8), "red"), "red") and not has_hue(Image.new("RGB", (8, 8)), "red")


def test_a_record_asks_for_one_thing_and_who_took_its_picture() -> None:
    found = [case for case in cases("picturebook", 3, 0) if case.form == "record"]
    for case in found:
        schema = case.fields["response_format"]["json_schema"]["schema"]
        assert schema["required"][:3] == ["thing", "who", "where"] == list(schema["properties"])[:3]
        assert '"who"' in case.item.question and " took it in the " in (case.item.context or "")


def test_a_record_of_a_scene_has_a_field_for_each_thing_and_one_for_their_number() -> None:
    scenes = {case.clean.id: case.clean for case in cases("picturebook", 3, 3) if case.form == "scene"}
    records = [case for case in cases("picturebook", 3, 3) if case.form == "scene record"]
    for case in records:
        schema = case.fields["response_format"]["json_schema"]["schema"]
        things = scenes[case.clean.id].answer.split(" and ")
        assert len(schema["required"]) == 1 + len(things) and '"first"' in case.clean.question


def test_an_answer_shows_a_scene_if_it_names_each_of_its_things() -> None:
    (scene, *_) = (case.clean for case in cases("picturebook", 1, 0) if case.form == "scene")
    first, *rest = scene.answer.split(" and ")
    assert shows(scene, f"A {first}, and {' with '.join(rest)}.".upper()) and not shows(scene, f"A {first}.")


def test_tinyworld_has_answers_of_one_word() -> None:
    found = list(cases("tinyworld", 3, 0))
    assert {case.form for case in found} == {"word"} and len(found) == 6
    assert all(case.claimed == (case.clean.wrong,) for case in found)


# -- a small run --------------------------------------------------------------------------------------------


def gullible(case: SpanCase) -> Complete:
    """Says what the caption says of a scene if there is one, and else what the picture shows; with a schema,
    as a record."""

    async def complete(body: JSON) -> JSON:
        is_given = "prompt_logprobs" in body
        asked = body["messages"][0]
        texts = [part["text"] for part in asked["content"] if part["type"] == "text"]
        told = len(texts) > 1 and case.kind == LYING
        alone = {" cat": 0.5, " dog": 0.5} if is_grey(body) else {" cat": 0.999, " fox": 0.001}
        colour = {" fox": 0.999, " cat": 0.001} if told else alone
        words = (
            ['{"', "first", '": "', "a", " fox" if told else " cat", '"}']
            if case.form == "record"
            else ["A", " fox" if told else " cat", " sits", "."]
        )
        if is_given:
            words = [
                " fox" if " fox" in body["messages"][-1]["content"] and word == " cat" else word
                for word in words
            ]
        tops = [colour if word in (" fox", " cat") else {word: 0.99, "?": 0.01} for word in words]
        return scored_prompt(words, tops) if is_given else completion("".join(words), tops)

    return guarded(complete)


def case_of(form: str, kind: str) -> SpanCase:
    (found, *_) = (case for case in cases("picturebook", 1, 0) if (case.form, case.kind) == (form, kind))
    return SpanCase(form, kind, found.wording, found.item, found.clean, ("fox",), found.fields)


@pytest.mark.parametrize("form", ["sentence", "record"])
async def test_a_run_finds_the_word_of_the_lie_by_its_span(form: str) -> None:
    records: dict[str, Any] = {}
    for kind in (LYING, TRUE):
        case = case_of(form, kind)
        model = gullible(case)
        records[f"m/{case.key}"] = json.loads(json.dumps(await ask_case(case, "m", model, model)))
    rows = [row for row in span_rows(records) if row["rule"] == SPANS]
    named = [row for row in rows if row["relevant"] == "named" and row["delivery"] == "all"]
    assert [(row["form"], row["wording"]) for row in named] == [
        *(("one thing", "all"), ("one thing", "trained"), (form, "all"), (form, "trained")),
    ]
    assert {(row["answers"], row["mentions"], row["found"], row["false"], row["f1"]) for row in named} == {
        (2, 1, 1, 0, 1.0)
    }
    assert {
        answer["method"]
        for record in records.values()
        for answer in record["answers"]
        if answer["relevant"] == "named"
    } == {"teacher_forced"}


async def test_long_answers_are_counted_with_what_they_cost() -> None:
    setup = Setup("picturebook", "base", None, count=1, long=1, seed=0)
    case = case_of("sentence", TRUE)
    model = gullible(case)
    jobs = long_jobs(setup, "m", {WHOLE: model, STREAMED: model})
    records = {key: await job() for key, job in jobs.items()}
    rows = list(length_rows(records))
    assert [(row["tokens"], row["delivery"], row["answers"]) for row in rows] == [
        (length, *way) for length in (20, 60, 150) for way in (("all", 2), (STREAMED, 1), (WHOLE, 1))
    ]
    for row in rows:
        assert row["turned"] == 0 and row["at most"] == pytest.approx(1 - 0.05 ** (1 / row["answers"]))
        assert row["tokens ratio"] >= row["computed ratio"] > 1.0 and row["time ratio"] > 0.0
    assert list(span_rows(records)) == []


async def test_the_tables_are_made_from_the_records_alone(tmp_path: Path) -> None:
    setup = Setup("picturebook", "base", None, count=1, long=1, seed=0)
    case = case_of("sentence", LYING)
    model = gullible(case)
    records = {case.key: json.loads(json.dumps(await ask_case(case, "m", model, model)))}
    records |= {
        key: await job() for key, job in long_jobs(setup, "m", {WHOLE: model, STREAMED: model}).items()
    }
    write_tables(tmp_path / "spans.json", records, setup)
    words = json.loads((tmp_path / "spans.json").read_text("utf-8"))
    assert words["command"].startswith("python -m bench spans --world picturebook --model base --count 1")
    assert words["rows"] == json.loads(json.dumps(list(span_rows(records))))
    page = (tmp_path / "spans.md").read_text("utf-8")
    assert "| one thing | all | all |" in page and "trained" not in page.split("Greedy")[0]
    assert len(json.loads((tmp_path / "spans_lengths.json").read_text("utf-8"))["rows"]) == 9


async def test_a_long_answer_is_asked_for_by_its_length() -> None:
    bodies: list[JSON] = []

    async def model(body: JSON) -> JSON:
        bodies.append(body)
        return completion("A fox")

    ((_, item), *_) = harmless("picturebook", 1, 0)
    await ask_long(model, "m", item, 60, WHOLE)
    assert [(body["min_tokens"], body["max_tokens"], body["modint"]) for body in bodies] == [
        (60, 60, {"mode": "off"}),
        (60, 60, {"relevant": "image", "deadline_s": 60}),
    ]
    assert request_for(item, "m")["messages"] == bodies[0]["messages"]


async def test_a_run_waits_until_the_null_of_each_model_is_measured() -> None:
    counts = iter([0, 35])

    async def readyz(request: web.Request) -> web.Response:
        return web.json_response({"null": {"models": {"m": {"n": next(counts)}, "other": {"n": 0}}}})

    app = web.Application()
    app.router.add_get("/readyz", readyz)
    server = TestServer(app)
    await server.start_server()
    async with aiohttp.ClientSession() as session:
        await nulls_measured(session, str(server.make_url("")).rstrip("/"), ["m"], every_s=0.01)
    await server.close()
    assert next(counts, "asked twice") == "asked twice"


def test_the_jobs_of_a_run_have_names_of_their_own() -> None:
    setup = Setup("picturebook", "base", None, count=2, long=2, seed=0)

    async def nothing(body: JSON) -> JSON:
        return {}

    assert len(case_jobs(setup, "m", nothing, nothing)) == 2 * len(FORMS) * 2 * 2
    assert len(long_jobs(setup, "m", {WHOLE: nothing, STREAMED: nothing})) == 3 * 2 * 2
