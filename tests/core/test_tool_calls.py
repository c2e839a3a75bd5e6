"""Tool calls: judged by the values of their arguments, in whatever form the model writes a call."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.chat.reply import StreamReply, reply_of
from modint_guard.chat.tool_calls import as_written
from modint_guard.examination import NOTE_CALLS
from modint_guard.mitigation.policy import Policy
from modint_guard.report import Report
from modint_guard.types import JSON, Cause, Complete, State
from tests.core.fakes import ask, completion, reads, scored_prompt, sees_picture

LIE = "The caption says blue."
TOOL = {"type": "function", "function": {"name": "report", "parameters": {"type": "object"}}}
HERMES = (
    '<tool_call>\n{"name": "report", "arguments": {"',
    "colour",
    '": "',
    "blue",
    '", "',
    "count",
    '": ',
    "3",
    "}}",
    "\n</tool_call>",
    "<|im_end|>",
)
XML = (
    "<tool_call><function=report><parameter=colour>\n",
    "blue",
    "\n</parameter><parameter=",
    "count",
    ">\n",
    "3",
    "\n</parameter>",
    "</function></tool_call>",
)
PYTHONIC = ("[report(", "colour", "='", "blue", "', count=", "3", ")]")
ARGUMENTS = json.dumps({"colour": "blue", "count": 3})


def calling(words: Sequence[str], tops: Sequence[Mapping[str, float]] | None = None, *arguments: str) -> JSON:
    """A completion of tool calls that was written in these tokens."""
    calls = [
        {"id": str(n), "type": "function", "function": {"name": "report", "arguments": each}}
        for n, each in enumerate(arguments or (ARGUMENTS,))
    ]
    said = completion("", tops or [{word: 0.99} for word in words], tool_calls=calls)
    said["choices"][0]["finish_reason"] = "tool_calls"
    return said


@pytest.mark.parametrize("words", [HERMES, XML, PYTHONIC])
def test_the_values_are_found_in_what_the_model_wrote(words: tuple[str, ...]) -> None:
    answer = as_written(reply_of(calling(words)))
    assert answer.skip is None and answer.leaves is not None
    assert [(answer.text[leaf.start : leaf.end], leaf.path) for leaf in answer.leaves] == [
        ("blue", "/tool_calls/0/function/arguments/colour"),
        ("3", "/tool_calls/0/function/arguments/count"),
    ]
    assert [leaf.at for leaf in answer.leaves] == [ARGUMENTS.index("blue"), ARGUMENTS.index("3")]
    assert answer.text == "".join(words[: len(answer.positions)]) and answer.positions[-1].token == "3"


def test_several_calls_are_told_apart() -> None:
    first, second = '{"colour": "red"}', '{"colour": "red", "of": ["a", "b"]}'
    written = ("[", first, ", ", second, "]")
    answer = as_written(reply_of(calling(written, None, first, second)))
    assert answer.leaves is not None
    assert [(leaf.path, leaf.at) for leaf in answer.leaves] == [
        ("/tool_calls/0/function/arguments/colour", 12),
        ("/tool_calls/1/function/arguments/colour", 12),
        ("/tool_calls/1/function/arguments/of/0", second.index("a")),
        ("/tool_calls/1/function/arguments/of/1", second.index("b")),
    ]
    assert [answer.text[leaf.start : leaf.end] for leaf in answer.leaves] == ["red", "red", "a", "b"]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (("report()",), "{}"),
        (("report(True)",), '{"flag": true}'),
        (("report(flag=True)",), '{"flag": true}'),
        (HERMES, "not JSON"),
        (HERMES, ""),
    ],
)
def test_calls_without_values_and_values_that_are_not_found_stay_as_they_are(
    words: tuple[str, ...], arguments: str
) -> None:
    answer = reply_of(calling(words, None, arguments))
    assert as_written(answer) == answer and answer.skip == "tool_calls"


def test_the_calls_of_a_stream_are_put_together_from_their_pieces() -> None:
    stream = StreamReply()
    for index, piece in ((0, None), (0, '{"colour": '), (1, '{"n": 1}'), (0, '"blue"}')):
        call = {"index": index, "function": {"name": "report", "arguments": piece}}
        stream.feed({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    assert stream.reply().calls == ('{"colour": "blue"}', '{"n": 1}')


@pytest.mark.parametrize(
    "calls",
    ["none", [None], [{}], [{"function": "f"}], [{"index": "one", "function": {"arguments": {"a": 1}}}]],
)
def test_calls_of_another_shape_have_no_arguments(calls: object) -> None:
    said = completion("", [{"x": 0.9}], tool_calls=calls)
    answer = reply_of(said)
    assert answer.skip == "tool_calls" and not any(answer.calls) and as_written(answer) == answer


# -- through the guard --------------------------------------------------------------------------------------


def caller(*, lies: bool = True, text: bool = False) -> tuple[list[JSON], Complete]:
    """Calls report(colour=…, count=3); the colour is red to the picture, and blue by the caption."""
    calls: list[JSON] = []
    words = ("It", " is", " blue") if text else HERMES
    at = words.index(" blue") if text else words.index("blue")

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        is_given = "prompt_logprobs" in body
        asked = {**body, "messages": body["messages"][:1]}
        shown = "red" if lies else "blue"
        colour = "blue" if lies and reads(asked, LIE) else shown if sees_picture(asked) else "green"
        tops: list[Mapping[str, float]] = [{word: 0.99} for word in words]
        names = ("red", "blue", "green") if not text else (" red", " blue", " green")
        tops[at] = {name: 0.9995 if name.strip() == colour else 0.0001 for name in names}
        if is_given:
            given = body["messages"][-1]["content"]
            count = next(n for n in range(len(words) + 1) if "".join(words[:n]).strip() == given.strip())
            return scored_prompt(words[:count], tops[:count])
        return completion("".join(words), tops) if text else calling(words, tops)

    return calls, complete


async def judged(model: Complete, **fields: Any) -> Report:
    policies = (Policy(action="neutralise", accept_at=0.0),) if fields.pop("corrects", False) else ()
    guard = Guard(GuardConfig(teacher_forcing=True, policies=policies))
    options = {"modint": {"relevant": "image", "context": LIE}, "tools": [TOOL]}
    return (await guard.inspect(ask(f"{LIE}\nReport the thing.", **options | fields), model)).report


async def test_the_argument_that_a_lie_gave_is_flagged() -> None:
    calls, model = caller()
    report = await judged(model, tool_choice="required")
    assert (report.verdict.state, report.verdict.cause, report.method) == (
        State.FLAGGED,
        Cause.TEXT,
        "teacher_forced",
    )
    assert [(span.path, span.text, span.start, span.cause) for span in report.spans] == [
        ("/tool_calls/0/function/arguments/colour", "blue", 12, Cause.TEXT),
        ("/tool_calls/0/function/arguments/count", "3", ARGUMENTS.index("3"), None),
    ]
    main, *views = calls
    assert main["tool_choice"] == "required" and main["tools"] == [TOOL]
    assert len(views) == 4 and all(
        view["tools"] == [TOOL] and view["tool_choice"] == "none" for view in views
    )
    assert all(view["messages"][-1]["content"] == "".join(HERMES[:8]) for view in views)


async def test_a_true_call_passes_and_so_does_a_true_text_beside_tools() -> None:
    for text in (False, True):
        report = await judged(caller(lies=False, text=text)[1])
        assert report.verdict.state is State.PASS and report.spans


async def test_a_text_beside_tools_is_judged_as_any_other() -> None:
    report = await judged(caller(text=True)[1])
    assert (report.verdict.cause, [span.text for span in report.spans if span.cause]) == (
        Cause.TEXT,
        ["blue"],
    )


async def test_a_call_is_not_corrected_and_says_so() -> None:
    calls, model = caller()
    report = await judged(model, corrects=True)
    assert (report.verdict.cause, report.action, report.mitigation) == (Cause.TEXT, "annotate", None)
    assert NOTE_CALLS in report.notes and len(calls) == 5


async def test_a_call_whose_values_are_not_found_is_skipped() -> None:
    async def model(body: JSON) -> JSON:
        return calling(("report(True)",), None, '{"flag": true}')

    report = await judged(model)
    assert (report.verdict.state, report.verdict.reason) == (State.SKIPPED, "tool_calls")


async def test_where_the_engine_cannot_score_it_a_request_with_tools_is_skipped() -> None:
    _, model = caller()
    report = (await Guard().inspect(ask(f"{LIE}\nReport the thing.", tools=[TOOL]), model)).report
    assert (report.verdict.state, report.verdict.reason) == (State.SKIPPED, "tool_calls")
