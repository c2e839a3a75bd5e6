"""Answers whose form the request forces: judged by their leaf values, as views score them without it."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.chat.eligibility import CONSTRAINTS
from modint_guard.chat.reply import reply_of
from modint_guard.judge import NOTE_CONSTRAINED
from modint_guard.mitigation.policy import Policy
from modint_guard.probing.teacher_forcing import LAST_ROWS
from modint_guard.report import Report
from modint_guard.types import JSON, Cause, Complete, State
from tests.core.fakes import ask, completion, reads, scored_prompt, sees_picture

LIE = "The caption says blue."
SCHEMA = {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"type": "object"}}}
KEYS = ('{"', "colour", '": "'), ('", "', "number", '": ', "3", "}")


def recorder(
    *, lies: bool = True, keys_move: bool = False, scores: bool = True, pieces: bool = False
) -> tuple[list[JSON], Complete]:
    """Says {"colour": …, "number": 3}; the colour is red to the picture, and blue by the caption if it lies.

    keys_move: whether the second key depends on the caption. scores: whether it scores a given answer.
    pieces: whether the mask leaves it single characters, which a given answer is not split into.
    """
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        is_given = "prompt_logprobs" in body
        asked = {**body, "messages": body["messages"][:1]}
        seen, read = sees_picture(asked), reads(asked, LIE)
        colour = "blue" if read and lies else "red" if seen else "green"
        said = "red" if '"red"' in str(body["messages"][-1]["content"]) else "blue"
        words = (*KEYS[0], (said if is_given else colour), *KEYS[1])
        is_masked = any(body.get(key) for key in CONSTRAINTS)
        tops: list[Mapping[str, float]] = [
            {word: 1.0} if is_masked else {word: 0.6, "```": 0.4} for word in words
        ]
        tops[3] = {name: 0.9995 if name == colour else 0.0001 for name in ("red", "blue", "green")}
        tops[7] = {"3": 0.999} if seen else {"3": 0.5, "4": 0.5}
        if keys_move:
            tops[5] = {"number": 0.999, "count": 0.001} if read else {"number": 0.001, "count": 0.999}
        if is_given:
            return scored_prompt(words, tops) if scores else completion("!")
        if pieces:
            return completion("".join(words), [{sign: 1.0} for sign in "".join(words)])
        return completion("".join(words), tops)

    return calls, complete


async def judged(complete: Complete, *, config: Mapping[str, Any] | None = None, **fields: Any) -> Report:
    guard = Guard(GuardConfig(**({"teacher_forcing": True} | dict(config or {}))))
    fields = {"response_format": SCHEMA} | fields
    options = {"relevant": "image", "context": LIE} | fields.pop("modint", {})
    body = ask(f"{LIE}\nDescribe the thing in the picture.", **fields, modint=options)
    return (await guard.inspect(body, complete)).report


@pytest.mark.parametrize(
    "constraint",
    [
        {"response_format": SCHEMA},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json": {}}},
        {"guided_json": {"type": "object"}},
        {"guided_regex": "{.*}"},
    ],
)
async def test_the_leaf_that_a_lie_gave_is_flagged_by_its_path(constraint: JSON) -> None:
    calls, model = recorder()
    report = await judged(model, **({"response_format": None} | constraint))
    assert (report.verdict.state, report.verdict.cause, report.method) == (
        State.FLAGGED,
        Cause.TEXT,
        "teacher_forced",
    )
    assert [(span.kind, span.path, span.text, span.cause) for span in report.spans] == [
        ("leaf", "/colour", "blue", Cause.TEXT),
        ("leaf", "/number", "3", None),
    ]
    assert (report.image_only, report.notes[0]) == ("red", NOTE_CONSTRAINED)
    main, *given = calls
    assert all(main[key] == value for key, value in constraint.items())
    assert len(given) == 4 and all(
        "prompt_logprobs" in call and not {*CONSTRAINTS} & {*call} for call in given
    )
    assert {probe.name for probe in report.probes} == {
        "no_context",
        "neutral_image",
        "prior",
        "unconstrained",
    }


async def test_an_answer_that_the_mask_split_otherwise_is_judged_as_the_model_itself_splits_it() -> None:
    _, model = recorder(pieces=True)
    report = await judged(model)
    assert (report.verdict.cause, report.method) == (Cause.TEXT, "teacher_forced")
    assert [(span.path, span.text, span.cause) for span in report.spans] == [
        ("/colour", "blue", Cause.TEXT),
        ("/number", "3", None),
    ]


@pytest.mark.parametrize("pieces", [True, False])
async def test_an_engine_that_can_is_asked_for_enough_rows_however_the_record_was_split(pieces: bool) -> None:
    calls, model = recorder(pieces=pieces)

    async def last_alone(body: JSON) -> JSON:
        whole = await model(body)
        if "prompt_logprobs" in body:
            listed = whole["prompt_logprobs"]
            whole["prompt_logprobs"] = [None, *listed[1:][-body["vllm_xargs"][LAST_ROWS] :]]
        return whole

    body = ask(f"{LIE}\nDescribe it.", response_format=SCHEMA, modint={"relevant": "image", "context": LIE})
    guard = Guard(GuardConfig(teacher_forcing=True))
    async with guard.examine(guard.plan(body, last_rows=True), last_alone) as examination:
        reply = reply_of(await last_alone(examination.body))
        report = await examination.report_on(lambda: reply)
    assert (report.verdict.cause, report.method) == (Cause.TEXT, "teacher_forced")
    asked = [call["vllm_xargs"] for call in calls if "prompt_logprobs" in call]
    assert asked == [{LAST_ROWS: len('{"colour": "blue", "number": 3}') + 1}] * 4


async def test_a_prompt_that_does_not_end_in_the_answer_scores_nothing() -> None:
    _, model = recorder()

    async def other(body: JSON) -> JSON:
        return (
            scored_prompt(("So", "thing"), [{"So": 0.9}, {"thing": 0.9}])
            if "prompt_logprobs" in body
            else await model(body)
        )

    report = await judged(other)
    assert (report.verdict.state, report.verdict.reason) == (State.UNSCORED, "upstream_error")


async def test_a_true_record_passes() -> None:
    _, model = recorder(lies=False)
    report = await judged(model)
    assert report.verdict.state is State.PASS
    assert [span.cause for span in report.spans] == [None, None]


async def test_keys_carry_no_evidence_even_if_the_caption_gave_them() -> None:
    _, model = recorder(lies=False, keys_move=True)
    report = await judged(model)
    assert report.verdict.state is State.PASS
    assert report.influence_text == pytest.approx(0.0, abs=1e-6)


async def test_where_the_engine_cannot_score_a_given_answer_it_is_skipped() -> None:
    calls, model = recorder()
    report = await judged(model, config={"teacher_forcing": False})
    assert (report.verdict.state, report.verdict.reason) == (State.SKIPPED, "structured_output")
    assert len(calls) == 1 and report.spans == ()


async def test_if_the_engine_gives_no_scores_after_all_it_is_unscored() -> None:
    _, model = recorder(scores=False)
    report = await judged(model)
    assert (report.verdict.state, report.verdict.reason) == (State.UNSCORED, "upstream_error")


async def test_a_record_that_is_too_long_to_be_scored_is_skipped() -> None:
    calls, model = recorder()
    report = await judged(model, config={"max_forced_tokens": 5})
    assert (report.verdict.state, report.verdict.reason) == (State.SKIPPED, "structured_output")
    assert len(calls) == 1


async def test_a_document_without_values_is_skipped() -> None:
    async def model(body: JSON) -> JSON:
        return completion("{}", [{"{}": 1.0}])

    report = await judged(model)
    assert (report.verdict.state, report.verdict.reason) == (State.SKIPPED, "empty_answer")


async def test_a_choice_of_one_token_is_scored_as_a_whole_too() -> None:
    async def model(body: JSON) -> JSON:
        asked = {**body, "messages": body["messages"][:1]}
        colour = "blue" if reads(asked, LIE) else "red"
        top = {name: 0.9995 if name == colour else 0.0001 for name in ("red", "blue")}
        return (
            scored_prompt(("blue",), [top])
            if "prompt_logprobs" in body
            else completion("blue", [{"blue": 1.0}])
        )

    report = await judged(model, response_format=None, structured_outputs={"choice": ["red", "blue"]})
    assert (report.verdict.state, report.verdict.cause) == (State.FLAGGED, Cause.TEXT)


async def test_other_probes_do_not_fit_a_forced_form_and_a_note_says_so() -> None:
    calls, model = recorder()
    report = await judged(model, modint={"probes": ["benign", "noop"]})
    assert report.verdict.state is State.FLAGGED and len(calls) == 5
    assert any("benign does not fit" in note for note in report.notes)


async def test_a_view_is_asked_in_the_request_s_form_for_the_record_that_is_served_in_its_place() -> None:
    calls, model = recorder()
    policies = (Policy(action="neutralise", accept_at=0.5),)
    report = await judged(model, config={"policies": policies})
    assert report.mitigation is not None and report.mitigation.answer is not None
    assert json.loads(report.mitigation.answer) == {"colour": "red", "number": 3}
    assert calls[-1]["response_format"] == SCHEMA
