"""The bench of nulls: its two halves, what is kept of an answer, and the rows that are made from that."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bench.nulls import measure
from bench.nulls.inputs import (
    CAPTION,
    LIES,
    MORE,
    NULL,
    PLANTED,
    TEMPERATURES,
    TESTED,
    TOKENS,
    HarmlessCase,
    LieCase,
    harmless_cases,
    lie_cases,
)
from bench.nulls.measure import Run, ask_harmless, ask_lie, beginning, jobs_of, judged, measure_nulls
from bench.nulls.table import ALL, CONFIG, null_of, rows_of
from bench.nulls.vocabulary import token_ids
from bench.spans.lengths import LENGTHS, MARKS
from modint_guard import Guard, GuardConfig
from modint_guard.evaluation.journal import Journal
from modint_guard.models import BASE, bundled
from modint_guard.types import JSON, Complete
from tests.core.fakes import completion, guarded, scored_prompt

COUNT = 16
WORDS = [5, 7]  # the tokens in which a long answer goes on


@pytest.fixture(scope="module")
def cases() -> list[HarmlessCase]:
    return list(harmless_cases(COUNT, 0))


# -- what is asked ------------------------------------------------------------------------------------------


def test_the_halves_share_no_kind_of_input_no_form_of_question_and_no_picture(
    cases: Sequence[HarmlessCase],
) -> None:
    made_from, tested = ([case for case in cases if case.half == half] for half in (NULL, TESTED))
    assert not {case.kind for case in made_from} & {case.kind for case in tested}
    assert not {case.item.task for case in made_from} & {case.item.task for case in tested}
    assert not any(case.item.held_out_wording for case in made_from)
    assert all(case.item.held_out_wording for case in tested)
    assert len({case.item.id for case in cases}) == len({case.key for case in cases}) == len(cases)


def test_every_length_is_asked_for_at_both_temperatures_long_ones_that_are_tested_less_often(
    cases: Sequence[HarmlessCase],
) -> None:
    for half in (NULL, TESTED):
        for tokens in TOKENS:
            for temperature in TEMPERATURES:
                told = (half, tokens, temperature)
                cell = [case for case in cases if (case.half, case.tokens, case.temperature) == told]
                assert len(cell) == COUNT * (1 if half == TESTED and tokens in LENGTHS else MORE)
    families = {case.item.family for case in cases if case.half == TESTED}
    assert families == {"image-heavy", "text-heavy"}


def test_a_larger_run_asks_what_a_smaller_one_asked_and_more(cases: Sequence[HarmlessCase]) -> None:
    larger = {case.key: case for case in cases}
    for case in harmless_cases(2, 0):
        assert case == larger[case.key]


def test_a_request_says_what_is_relevant_and_how_long_its_answer_is(cases: Sequence[HarmlessCase]) -> None:
    for tokens in TOKENS:
        (case, *_) = (each for each in cases if (each.half, each.tokens) == (TESTED, tokens))
        body = case.body("m", 0, WORDS)
        assert (body["max_tokens"], body["modint"]["relevant"]) == (tokens, "image")
        forced = [body.get(name) for name in ("min_tokens", "bad_words", "allowed_token_ids")]
        assert forced == ([tokens, list(MARKS), WORDS] if tokens in LENGTHS else [None, None, None])


def test_long_answers_go_on_in_the_tokens_of_the_worlds_answers() -> None:
    found = token_ids(bundled(BASE))
    tokenizer = AutoTokenizer.from_pretrained(bundled(BASE))
    assert found == sorted(set(found)) and len(found) < len(tokenizer)
    assert {*tokenizer.encode("red", add_special_tokens=False)} <= {*found}
    assert tokenizer.eos_token_id not in found


def test_into_the_null_s_requests_unrelated_sentences_are_planted_and_named(
    cases: Sequence[HarmlessCase],
) -> None:
    planted = [each for each in cases if each.kind == "unrelated sentences" and each.number < 12]
    assert len(planted) == 4 * len(TOKENS) * len(TEMPERATURES)
    for case in planted:
        body = case.body("m", 0, WORDS)
        texts = [part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text"]
        assert body["modint"]["context"] in texts and len(texts) == 2
        assert body == case.body("m", 0, WORDS)


def test_a_lie_claims_what_the_answer_without_it_did_not_say() -> None:
    for case in lie_cases(5, 0):
        alone = "B" if case.item.task == "lettered" else case.item.answer
        body = case.body("m", alone, 0)
        assert body is not None
        texts = [part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text"]
        assert len(texts) == 2
        claimed = next(text for text in texts if text != case.item.question)
        assert case.item.answer.casefold() not in claimed.casefold().split()


# -- what is kept of an answer ------------------------------------------------------------------------------


def speaking(words: list[str], alone: list[str], told: str) -> Complete:
    """A guarded model: says `words` where its request holds the text `told`, and `alone` without it."""

    async def complete(body: JSON) -> JSON:
        is_told = told in json.dumps(body["messages"])
        said, other = (words, alone) if is_told else (alone, words)
        tops = [{a: 0.999, b: 0.001} if a != b else {a: 0.999} for a, b in zip(said, other, strict=True)]
        if "prompt_logprobs" not in body:
            return completion("".join(said), tops)
        return scored_prompt(words, tops)

    return guarded(complete)


def case_of(half: str, tokens: int, cases: Sequence[HarmlessCase]) -> HarmlessCase:
    return next(case for case in cases if (case.half, case.tokens) == (half, tokens))


@pytest.mark.parametrize("words", [["yes"], ["yes", ",", " it", " is"]])
async def test_the_length_of_an_answer_is_that_of_its_statistic(
    words: list[str], cases: Sequence[HarmlessCase]
) -> None:
    case = case_of(TESTED, 5, cases)
    complete = speaking(words, words, "")
    guard = Guard(GuardConfig(teacher_forcing=True))

    async def unguarded(body: JSON) -> JSON:
        return await complete({**body, "modint": {"mode": "off"}})

    found = await guard.inspect(case.body("m", 0, WORDS), unguarded)
    assert found.report.statistic is not None
    kept = judged(found.completion)
    assert (kept["score"], kept["length"]) == tuple(found.report.statistic)
    assert kept["length"] == len(words)


async def test_an_answer_is_right_or_wrong_a_long_one_by_its_beginning(
    cases: Sequence[HarmlessCase],
) -> None:
    short, long = case_of(TESTED, 1, cases), case_of(NULL, 20, cases)
    for case in (short, long):
        more = [".", f" {case.item.wrong}"] if case is long else []
        for answer, right in ((case.item.answer, True), (case.item.wrong, False)):
            words = [answer, *more]
            record = await ask_harmless(case, "m", speaking(words, words, ""), 0, WORDS)
            assert record["right"] is right and record["score"] is not None


def test_the_beginning_of_an_answer_is_its_first_sentence_and_at_most_eight_words() -> None:
    assert beginning(" A fox. A cat.") == "A fox."
    assert beginning("A fox\nA cat") == "A fox"
    assert beginning("a b c d e f g h i") == "a b c d e f g h"
    assert beginning("") == ""


async def test_a_lie_counts_if_it_made_a_right_answer_wrong() -> None:
    case = next(case for case in lie_cases(5, 0) if case.kind == CAPTION and case.item.task == "yes_no")
    right, wrong, lie = case.item.answer, case.item.wrong, case.item.lie
    turned = await ask_lie(case, "m", speaking([wrong], [right], lie), 0)
    assert (turned["right"], turned["changed"]) == (True, True) and turned["score"] > 2.2
    kept = await ask_lie(case, "m", speaking([right], [right], lie), 0)
    assert (kept["right"], kept["changed"]) == (True, False)
    without = await ask_lie(case, "m", speaking([wrong], [wrong], lie), 0)
    assert (without["right"], without["changed"], "score" in without) == (False, None, False)


async def test_a_lie_that_cannot_be_made_up_is_not_asked() -> None:
    case = next(case for case in lie_cases(5, 0) if case.kind == PLANTED and case.item.task == "open")
    long = LieCase(PLANTED, 0, case.item.replace(answer=" ".join(["word"] * 20)))
    said = await ask_lie(long, "m", speaking([long.item.answer], [long.item.answer], ""), 0)
    assert (said["right"], said["changed"]) == (True, None)


# -- the rows -----------------------------------------------------------------------------------------------


def record(half: str | None, score: float | None, tokens: int = 1, **more: Any) -> JSON:
    told = {"half": half, "temperature": 0, "tokens": tokens} if half else {"changed": True}
    method = "teacher_forced" if tokens in LENGTHS else "first_token"
    return {**told, "kind": "k", "right": True, "score": score, "length": tokens, "method": method, **more}


def row_of(records: Sequence[JSON], kind: str = ALL, tokens: int | str = ALL) -> dict[str, Any]:
    rows = [dict(row) for row in rows_of(records)]
    assert len({tuple(row) for row in rows}) == 1
    return next(row for row in rows if (row["kind"], row["tokens"]) == (kind, tokens))


LOW = [record(NULL, -1.0 - 0.01 * number) for number in range(120)]


def test_the_null_is_made_from_its_half_alone_of_answers_that_are_not_wrong() -> None:
    others = [
        record(NULL, 9.0, right=False),
        record(NULL, None),
        record(TESTED, 9.0),
        record(None, 9.0, kind=PLANTED),
    ]
    assert len(null_of([*LOW, *others]).scores) == len(LOW)
    assert null_of([record(NULL, 9.0, 150)]).scores[0].length == 150


def test_an_answer_is_flagged_if_it_is_unusual_and_what_ought_to_decide_is_sure() -> None:
    tested = [record(TESTED, score) for score in (5.0, 1.0, -2.0)]
    row = row_of([*LOW, *tested, record(TESTED, 5.0, right=False), record(TESTED, None)], tokens=1)
    assert (row["asked"], row["n"], row["flagged"], row["unusual"]) == (5, 3, 1, 2)
    assert (row["share"], row["resolved"], row["near"]) == (pytest.approx(1 / 3), 1.0, 120)
    assert row["low"] < row["share"] < row["at most"] < row["high"]


def test_a_high_null_keeps_the_rule_s_flags_away() -> None:
    high = [record(NULL, 8.0) for _ in range(120)]
    row = row_of([*high, record(TESTED, 5.0)], tokens=1)
    assert (row["flagged"], row["unusual"], row["by rule"], row["by rule share"]) == (0, 0, 1, 1.0)


def test_where_the_null_knows_too_little_of_a_length_the_rule_decides() -> None:
    row = row_of([*LOW, record(TESTED, 5.0, 150), record(TESTED, 8.0, 150)], tokens=150)
    assert (row["resolved"], row["flagged"], row["by rule"], row["whole"]) == (0.0, 1, 1, 2)


def test_a_lie_that_changed_the_answer_counts_as_missed_if_it_has_no_score() -> None:
    told = [
        record(None, 5.0, kind=PLANTED),
        record(None, None, kind=PLANTED),
        record(None, 5.0, kind=PLANTED, changed=False),
        {"kind": PLANTED, "right": False, "changed": None},
    ]
    row = row_of([*LOW, *told], PLANTED)
    assert (row["asked"], row["n"], row["flagged"], row["share"]) == (4, 2, 1, 0.5)


def test_a_row_of_nothing_has_no_share() -> None:
    row = row_of(LOW, tokens=60)
    assert (row["n"], row["flagged"], row["share"], row["at most"], row["near"]) == (0, 0, None, None, None)


# -- a run --------------------------------------------------------------------------------------------------


def test_a_run_that_is_complete_starts_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    run = Run(str(tmp_path), 1, 0, 1)
    raw, output = tmp_path / "nulls.jsonl", tmp_path / "nulls.json"

    def interrupted(options: Sequence[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "serving", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_nulls(output, raw, run)
    made_by = json.loads(raw.read_text("utf-8").splitlines()[0])["made_by"]
    with Journal(raw, made_by) as journal:
        for key in jobs_of(run, "m", measure._never):
            half, *told = key.split("/")
            known = half in (NULL, TESTED)
            tokens = int(told[1].split()[0]) if known else 1
            journal.write(
                key, record(half if known else None, -1.0, tokens, **({} if known else {"kind": half}))
            )
    measure_nulls(output, raw, run)
    rows = json.loads(output.read_text("utf-8"))["rows"]
    assert {row["n"] for row in rows if row["inputs"] == "lies"} == {MORE}
    assert str(CONFIG.alpha) in output.with_suffix(".md").read_text("utf-8")
    assert {row["kind"] for row in rows} == {ALL, "k", *LIES}
