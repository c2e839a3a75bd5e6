"""Longer answers corrected part by part: a flagged claim or JSON value, and nothing else."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.mitigation.parts import MAX_PARTS, flagged_parts, left_out, rewritten
from modint_guard.mitigation.policy import Policy
from modint_guard.report import AnswerSpan, Inspection, Report, Verdict
from modint_guard.types import JSON, Cause, Complete, Reply, State
from tests.core.fakes import ask, completion, reads, scored_prompt, sees_picture

LIE = "The caption says blue."
CLAIMS = (
    "The",
    " ball",
    " is",
    " red",
    ".",
    " The",
    " cube",
    " is",
    " blue",
    ".",
    " Both",
    " are",
    " small",
    ".",
)
RECORD = ('{"', "ball", '": "', "red", '", "', "cube", '": "', "blue", '", "', "number", '": ', "2", "}")
FORM = {"response_format": {"type": "json_object"}}


def speaker(
    words: tuple[str, ...], said: str | None = None, sure: float = 0.99
) -> tuple[list[JSON], Complete]:
    """Says these words; of "blue" the picture alone shows green. Asked to go on behind a beginning, it says
    the rest of that, or `said`, with so much confidence in each token.
    """
    calls: list[JSON] = []
    whole = "".join(words)
    at = next(n for n, word in enumerate(words) if word.strip() == "blue")

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        asked = {**body, "messages": body["messages"][:1]}
        seen, read = sees_picture(asked), reads(asked, LIE)
        space = " " if words[at].startswith(" ") else ""
        colour = "blue" if read else "green" if seen else "grey"
        tops: list[Mapping[str, float]] = [{word: 0.99, "?": 0.01} for word in words]
        tops[at] = {
            f"{space}{name}": 0.9995 if name == colour else 0.0001 for name in ("blue", "green", "grey")
        }
        if (
            red := next((n for n, word in enumerate(words) if word.strip() == "red"), None)
        ) is not None and not seen:
            tops[red] = {words[red]: 0.5, "?": 0.5}
        if "prompt_logprobs" in body:
            return scored_prompt(words, tops)
        last = body["messages"][-1]
        if last["role"] == "assistant":
            rest = said if said is not None else whole[len(last["content"]) :].replace("blue", colour)
            return completion(rest, [{rest: sure, "?": sure / 2 if sure < 0.5 else 1 - sure}])
        if body.get("max_tokens") == 2:
            cut = completion("".join(words[:2]), tops[:2])
            cut["choices"][0]["finish_reason"] = "length"
            return cut
        return completion(whole, tops)

    return calls, complete


async def corrected(model: Complete, policy: Policy, **fields: Any) -> Inspection:
    guard = Guard(GuardConfig(teacher_forcing=True, policies=(policy,)))
    modint = {"relevant": "image", "context": LIE}
    return await guard.inspect(ask(f"{LIE}\nDescribe the picture.", modint=modint, **fields), model)


def content(found: Inspection) -> str:
    said: str = found.completion["choices"][0]["message"]["content"]
    return said


NEUTRALISE = Policy("neutralise", accept_at=0.5)


async def test_a_flagged_claim_is_generated_again_without_the_caption_and_the_others_stay() -> None:
    calls, model = speaker(CLAIMS)
    found = await corrected(model, NEUTRALISE)
    assert content(found) == "The ball is red. The cube is green. Both are small."
    assert found.report.mitigation is not None
    assert found.report.mitigation.original == "".join(CLAIMS)
    assert [(rung.rung, rung.outcome) for rung in found.report.mitigation.rungs] == [("neutralise", "mended")]
    last = calls[-1]
    assert last["messages"][-1] == {"role": "assistant", "content": "The ball is red."}
    assert last["continue_final_message"] and not reads({"messages": last["messages"][:1]}, LIE)


async def test_a_flagged_value_is_generated_again_and_the_record_keeps_its_form() -> None:
    calls, model = speaker(RECORD)
    found = await corrected(model, NEUTRALISE, **FORM)
    assert json.loads(content(found)) == {"ball": "red", "cube": "green", "number": 2}
    assert calls[-1]["messages"][-1]["content"] == '{"ball": "red", "cube": "'
    assert "response_format" not in calls[-1]


@pytest.mark.parametrize("said", ["green", "", "green}"])
async def test_where_no_value_ends_the_whole_answer_is_generated_again(said: str) -> None:
    calls, model = speaker(RECORD, said)
    found = await corrected(model, NEUTRALISE, **FORM)
    assert calls[-1]["response_format"] == FORM["response_format"]
    assert found.report.mitigation is not None
    assert [rung.rung for rung in found.report.mitigation.rungs] == ["neutralise"]


async def test_an_engine_that_does_not_go_on_behind_a_beginning_generates_the_whole_answer_again() -> None:
    calls, model = speaker(RECORD)

    async def refusing(body: JSON) -> JSON:
        if body.get("continue_final_message") and "prompt_logprobs" not in body:
            raise EndpointError("no such field", status=400)
        return await model(body)

    found = await corrected(refusing, NEUTRALISE, **FORM)
    assert calls[-1]["response_format"] == FORM["response_format"] and found.report.mitigation is not None
    assert [rung.outcome for rung in found.report.mitigation.rungs] != ["failed"]


async def test_a_part_that_the_view_is_not_sure_of_is_not_served() -> None:
    _, model = speaker(CLAIMS, sure=0.3)
    found = await corrected(model, NEUTRALISE)
    assert content(found) == "".join(CLAIMS) and found.report.mitigation is not None
    assert [rung.outcome for rung in found.report.mitigation.rungs] == ["unsure"]


async def test_a_policy_may_leave_out_the_flagged_part_alone() -> None:
    policy = Policy("abstain", parts="leave_out")
    found = await corrected(speaker(CLAIMS)[1], policy)
    assert content(found) == "The ball is red. […] Both are small."
    assert (found.report.action, found.completion["choices"][0]["finish_reason"]) == ("abstain", "stop")
    found = await corrected(speaker(RECORD)[1], policy, **FORM)
    assert json.loads(content(found)) == {"ball": "red", "cube": None, "number": 2}
    assert found.completion["modint"]["mitigation"]["original"] == "".join(RECORD)


async def test_by_default_an_abstention_is_one_of_the_whole_answer() -> None:
    found = await corrected(speaker(RECORD)[1], Policy("abstain"), **FORM)
    assert content(found).startswith("No answer is given")


def test_a_policy_for_parts_is_checked() -> None:
    with pytest.raises(ConfigError, match="parts is 'half'"):
        Policy("abstain", parts="half")  # type: ignore[arg-type]


# -- by hand ------------------------------------------------------------------------------------------------


def part(text: str, within: str, cause: Cause | None = Cause.TEXT, kind: Any = "claim") -> AnswerSpan:
    start = within.index(text)
    return AnswerSpan(kind, start, start + len(text), text, None, cause, 1.0, 1.0)


def report(*spans: AnswerSpan) -> Report:
    return Report(Verdict(State.FLAGGED, cause=Cause.TEXT), spans=spans)


def test_an_answer_that_is_flagged_as_a_whole_or_in_too_many_parts_has_none_to_be_mended() -> None:
    text = "abcdefghij"
    assert flagged_parts(report(part("a", text))) == ()
    assert flagged_parts(report(part("a", text), part("b", text))) == ()
    assert flagged_parts(report(part("b", text), part("a", text), part("c", text, None))) == (
        part("a", text),
        part("b", text),
    )
    many = [part(sign, text) for sign in text[: MAX_PARTS + 1]]
    assert flagged_parts(report(*many, part("j", text, None))) == ()


def answer(text: str) -> Reply:
    return Reply(text, "stop", None, None)


async def test_several_parts_are_rewritten_one_after_the_other_each_behind_what_is_new() -> None:
    text, bodies = "A long red fox, a small blue cat, a big owl", list[JSON]()

    async def model(body: JSON) -> JSON:
        bodies.append(body)
        return completion(" a very old green dog! And then", [{" a": 0.9}])

    parts = (part("A long red fox,", text), part("a small blue cat,", text))
    view = {"messages": [{"role": "user", "content": "What?"}]}
    found = await rewritten(answer(text), parts, {"model": "m", "stream": True}, view, model)
    assert found is not None and found.text == "a very old green dog, a very old green dog, a big owl"
    assert [body["messages"] for body in bodies] == [
        view["messages"],
        [*view["messages"], {"role": "assistant", "content": "a very old green dog,"}],
    ]
    assert "continue_final_message" not in bodies[0] and "stream" not in bodies[1]
    assert left_out(answer(text), parts) == "[…] […] a big owl"


@pytest.mark.parametrize(
    ("said", "new"),
    [(' 3, "b": 1}', '{"a": 3, "b": "x"}'), (' "3"}', None), ("3.5}", None), (" true}", None), (" 3", None)],
)
async def test_a_number_is_replaced_by_a_number_of_its_kind(said: str, new: str | None) -> None:
    text = '{"a": 2, "b": "x"}'

    async def model(body: JSON) -> JSON:
        assert body["messages"][-1]["content"] == '{"a":'
        return completion(said, [{said: 0.9}])

    found = await rewritten(answer(text), [part("2", text, kind="leaf")], {}, {"messages": []}, model)
    assert (found.text if found else None) == new
