"""Tool calls: judged by the values of their arguments, in whatever form the model writes a call."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.chat.reply import StreamReply, answer_positions, reply_of
from modint_guard.chat.thoughts import DEFAULT_EMPTY as EMPTY_THOUGHT
from modint_guard.chat.tool_calls import as_message, as_rendered, as_written
from modint_guard.examination import NOTE_CALLS, QUICK_TOKENS
from modint_guard.mitigation.policy import Policy
from modint_guard.report import Report
from modint_guard.types import JSON, Call, Cause, Complete, Position, Reply, State
from tests.core.fakes import ask, completion, reads, scored_prompt, sees_picture

LIE = "The caption says blue."
T = TypeVar("T")
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
    pieces = ((0, "report", None), (0, None, '{"colour": '), (1, "count", '{"n": 1}'), (0, None, '"blue"}'))
    for index, name, piece in pieces:
        call = {"index": index, "function": {"name": name, "arguments": piece}}
        stream.feed({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    assert stream.reply().calls == (Call("report", '{"colour": "blue"}'), Call("count", '{"n": 1}'))


@pytest.mark.parametrize(
    "calls",
    ["none", [None], [{}], [{"function": "f"}], [{"index": "one", "function": {"arguments": {"a": 1}}}]],
)
def test_calls_of_another_shape_have_no_arguments(calls: object) -> None:
    said = completion("", [{"x": 0.9}], tool_calls=calls)
    answer = reply_of(said)
    arguments = [call.arguments for call in answer.calls]
    assert answer.skip == "tool_calls" and not any(arguments) and as_written(answer) == answer


# -- as a template writes them ------------------------------------------------------------------------------

DEFINED = ("<tools>", "report", "(", "colour", ": ", "blue", " | ", "red", ", ", "count", ": ", "3", ")")
ASKED = ("</tools>", "Report", " it.", "<|im_start|>", "assistant", "\n")


def rendered(*words: str, calls: Sequence[str] = (ARGUMENTS,)) -> Reply | None:
    """What is found of calls at the end of a prompt of these tokens."""
    answer = reply_of(calling((), [], *calls))
    return as_rendered(answer, [Position(word, -0.1, {word: -0.1}) for word in words])


@pytest.mark.parametrize("words", [HERMES, XML, PYTHONIC])
def test_the_values_are_found_at_the_end_of_a_prompt_and_not_where_the_tools_are_defined(
    words: tuple[str, ...],
) -> None:
    found = rendered(*DEFINED, *ASKED, *words)
    assert found is not None and found.leaves is not None
    assert [(found.text[leaf.start : leaf.end], leaf.at) for leaf in found.leaves] == [
        ("blue", ARGUMENTS.index("blue")),
        ("3", ARGUMENTS.index("3")),
    ]
    # From the token on that holds the function's name.
    assert [position.token for position in found.positions] == [*words]
    assert answer_positions(found) == found.positions and found.skip is None


def test_a_function_that_is_named_in_its_own_arguments_is_found_where_it_is_called() -> None:
    said = '{"of": "report"}'
    found = rendered("<", "report", ">", said, ">", calls=[said])
    assert found is not None and found.text == f"report>{said}>"


def test_two_calls_of_one_function_are_found_in_their_order() -> None:
    first, second = '{"colour": "red"}', '{"colour": "blue"}'
    found = rendered("[report ", first, "]", "[report ", second, "]", calls=[first, second])
    assert found is not None and found.leaves is not None
    assert [found.text[leaf.start : leaf.end] for leaf in found.leaves] == ["red", "blue"]
    assert rendered("[report ", second, "]", calls=[first, second]) is None


def test_a_call_is_given_back_in_openais_shape_and_with_an_id_that_every_template_takes() -> None:
    (call,) = as_message(reply_of(calling((), [])))["tool_calls"]
    assert call["function"] == {"name": "report", "arguments": ARGUMENTS}
    assert call["id"].isalnum() and len(call["id"]) == 9


# -- behind reasoning ---------------------------------------------------------------------------------------

THOUGHT = ("<think>", "\n", "blue", ", 3?", "\n", "</think>", "\n\n")


@pytest.mark.parametrize("where", ["a field of its own", "the content", "nowhere"])
def test_a_call_behind_reasoning_is_read_behind_its_mark(where: str) -> None:
    said = calling((*THOUGHT, *HERMES))
    message = said["choices"][0]["message"]
    if where == "a field of its own":
        message |= {"content": None, "reasoning_content": "blue, 3?"}
    elif where == "the content":
        message["content"] = "".join(THOUGHT)
    answer = as_written(reply_of(said))
    assert (answer.reasoning, answer.text, answer.start) == (True, "".join(HERMES[:8]), 0)
    assert (answer.empty_thought, answer.skip) == (EMPTY_THOUGHT, None)


def test_where_reasoning_has_no_end_the_call_is_not_taken_for_what_stands_behind_it() -> None:
    said = calling(("blue", ", 3?", *HERMES))
    said["choices"][0]["message"] |= {"content": None, "reasoning_content": "blue, 3?"}
    assert reply_of(said).positions == ()


# -- through the guard --------------------------------------------------------------------------------------


def caller(
    *, lies: bool = True, text: bool = False, thought: Sequence[str] = (), tells: bool = True
) -> tuple[list[JSON], Complete]:
    """Calls report(colour=…, count=3); the colour is red to the picture, and blue by the caption.

    thought: what it thinks before, unless a thought is given. tells: whether the engine tells the tokens of a
    call; if not, calls that are given as a message end its prompt.
    """
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
            if body["messages"][-1].get("tool_calls"):
                assert "continue_final_message" not in body and not body["add_generation_prompt"]
                return rendering(words, tops)
            given = body["messages"][-1]["content"]
            if thought:
                assert given.startswith(EMPTY_THOUGHT)
                given = given.removeprefix(EMPTY_THOUGHT)
            count = next(n for n in range(len(words) + 1) if "".join(words[:n]).strip() == given.strip())
            return scored_prompt(words[:count], tops[:count])
        if text:
            return completion("".join(words), tops)
        said = calling((), [*({word: 0.99} for word in thought), *tops])
        if thought:
            said["choices"][0]["message"] |= {"content": None, "reasoning_content": "Hm."}
        if not tells:
            said["choices"][0]["logprobs"] = None
        return said

    return calls, complete


def rendering(words: Sequence[str], tops: Sequence[Mapping[str, float]]) -> JSON:
    """The scores of a prompt that ends in a call; what stands before it takes 30 tokens."""
    before = (*DEFINED, *ASKED)
    scored = scored_prompt((*before, *words), [*({word: 0.99} for word in before), *tops])
    return scored | {"usage": {"prompt_tokens": 30 + len(words), "completion_tokens": 1}}


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


@pytest.mark.parametrize("thought", [(), THOUGHT])
async def test_a_call_whose_tokens_are_not_told_is_judged_as_the_template_writes_it(
    thought: tuple[str, ...],
) -> None:
    calls, model = caller(tells=False, thought=thought)
    report = await judged(model)
    assert (report.verdict.cause, report.method, report.reasoning) == (
        Cause.TEXT,
        "teacher_forced",
        bool(thought),
    )
    assert [(span.path, span.text, span.start, span.cause) for span in report.spans] == [
        ("/tool_calls/0/function/arguments/colour", "blue", 12, Cause.TEXT),
        ("/tool_calls/0/function/arguments/count", "3", ARGUMENTS.index("3"), None),
    ]
    views = calls[1:]
    assert len(views) == 4 and all(view["messages"][-1]["tool_calls"] for view in views)
    assert (await judged(caller(lies=False, tells=False)[1])).verdict.state is State.PASS


@pytest.mark.parametrize(("behind", "left"), [(0, False), (QUICK_TOKENS, True)])
async def test_judging_a_call_whose_tokens_are_not_told_is_left_to_run_if_it_is_long(
    behind: int, left: bool
) -> None:
    _, model = caller(tells=False)
    taken: list[str] = []

    async def padded(body: JSON) -> JSON:
        said = await model(body)
        if "prompt_logprobs" in body:
            said["prompt_logprobs"] += scored_prompt(["."] * behind, [{".": 0.9}] * behind)[
                "prompt_logprobs"
            ][1:]
            said["usage"]["prompt_tokens"] += behind
        return said

    async def run(work: Callable[[], T]) -> T:
        taken.append("work")
        return work()

    guard = Guard(GuardConfig(teacher_forcing=True))
    plan = guard.plan(
        ask(f"{LIE}\nReport the thing.", tools=[TOOL], modint={"relevant": "image", "context": LIE})
    )
    async with guard.examine(plan, padded, run=run) as examination:
        completed = await padded(examination.body)
        report = await examination.report_on(lambda: reply_of(completed))
    assert (report.verdict.cause, bool(taken)) == (Cause.TEXT, left)


async def test_a_template_that_writes_no_calls_leaves_the_answer_skipped() -> None:
    for answered in (rendering(("no", "thing"), [{"no": 0.9}, {"thing": 0.9}]), rendering((), [])):
        _, model = caller(tells=False)

        async def without(body: JSON, model: Complete = model, answered: JSON = answered) -> JSON:
            return answered if "prompt_logprobs" in body else await model(body)

        report = await judged(without)
        assert (report.verdict.state, report.verdict.reason) == (State.SKIPPED, "tool_calls")


async def test_a_view_in_which_other_calls_are_found_counts_for_nothing() -> None:
    _, model = caller(tells=False)

    async def once_else(body: JSON) -> JSON:
        if "prompt_logprobs" in body and not sees_picture({**body, "messages": body["messages"][:1]}):
            words = (*HERMES[:-1], "<|end|>")  # as many as the request's
            return rendering(words, [{word: 0.9} for word in words])
        return await model(body)

    outcomes = {probe.name: probe.outcome for probe in (await judged(once_else)).probes}
    assert outcomes["neutral_image"] == outcomes["prior"] == "error"


async def test_calls_are_not_looked_for_where_it_is_not_told_how_long_the_prompt_was() -> None:
    calls, model = caller(tells=False)

    async def untold(body: JSON) -> JSON:
        return {**await model(body), "usage": None}

    report = await judged(untold)
    assert (report.verdict.reason, len(calls)) == ("tool_calls", 1)


async def test_calls_that_are_too_long_to_be_scored_are_skipped() -> None:
    calls, model = caller(tells=False)
    guard = Guard(GuardConfig(teacher_forcing=True, max_forced_tokens=len(ARGUMENTS) // 4 - 1))
    report = (await guard.inspect(ask(f"{LIE}\nReport the thing.", tools=[TOOL]), model)).report
    assert (report.verdict.reason, len(calls)) == ("tool_calls", 1)


async def test_a_call_behind_reasoning_is_judged_by_what_the_model_wrote_behind_it() -> None:
    calls, model = caller(thought=THOUGHT)
    report = await judged(model)
    assert (report.verdict.cause, report.reasoning) == (Cause.TEXT, True)
    assert [span.text for span in report.spans if span.cause] == ["blue"]
    assert {probe.name for probe in report.probes} >= {"unreasoned", "no_context"}
    given = {view["messages"][-1]["content"] for view in calls[1:]}
    assert given == {EMPTY_THOUGHT + "".join(HERMES[:8])}
    assert all(view["tool_choice"] == "none" for view in calls[1:])
    assert (await judged(caller(lies=False, thought=THOUGHT)[1])).verdict.state is State.PASS


@pytest.mark.parametrize("is_call", [True, False])
async def test_an_answer_from_elsewhere_is_judged_as_one_of_the_model_s_own(is_call: bool) -> None:
    calls, model = caller(text=not is_call)
    guard = Guard(GuardConfig(teacher_forcing=True))
    options: JSON = {
        "modint": {"relevant": "image", "context": LIE},
        "tools": [TOOL],
        "tool_choice": "required",
    }
    plan = guard.plan(ask(f"{LIE}\nReport the thing.", **options))
    given = calling((), [])["choices"][0]["message"] if is_call else "It is blue"
    async with guard.examine(plan, model, given=given) as examination:
        completed = await model(examination.body)
        report = await examination.report_on(lambda: reply_of(completed))
    assert (report.verdict.cause, report.method) == (Cause.TEXT, "teacher_forced")
    assert [span.text for span in report.spans if span.cause] == ["blue"]
    own, *views = calls
    assert (own["max_tokens"], own["tool_choice"], len(views)) == (2, "none", 4)
    assert all("prompt_logprobs" in view for view in views)


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
