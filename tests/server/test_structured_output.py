"""JSON answers and tool calls through the gateway: judged value by value where the engine can score them, on
every route, streamed or not.
"""

from typing import Any

import pytest
from pydantic import BaseModel

from tests.server.conftest import chat, serving
from tests.server.fake_upstream import JSON, Answer, FakeUpstream, misled, running, talkative
from tests.server.test_chat import chunks
from tests.server.test_responses import asked, documents

FORM = {"response_format": {"type": "json_object"}, "modint": {"relevant": "image"}}


def record(body: JSON) -> Answer:
    """`misled` as {"colour": …, "number": 3}."""
    colour = misled(body)
    of_colour = {f' "{word}",': p for word, p in colour.top.items()}
    tops = ({'{"colour":': 0.99}, of_colour, {' "number":': 0.99}, {" 3}": 0.99, " 4}": 0.01})
    return Answer(f'{{"colour": "{colour.text}", "number": 3}}', tops=tops)


def scoring(**fields: Any) -> FakeUpstream:
    fake = FakeUpstream(script=record, scores=True, **fields)
    fake.model_list = fake.model_list[:1]
    return fake


@pytest.mark.parametrize("stream", [False, True])
async def test_the_leaf_that_the_caption_gave_is_named_by_its_path(stream: bool) -> None:
    async with running(scoring()) as fake, serving(fake.url) as gateway:
        fake.forget()
        response = await gateway.post(chat(**FORM, stream=stream))
    answers = [chunk for chunk in chunks(response.body) if "modint" in chunk] if stream else [response.json]
    (report,) = (answer["modint"] for answer in answers)
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "teacher_forced")
    assert [(span["path"], span["text"], span["cause"]) for span in report["spans"]] == [
        ("/colour", "blue", "text"),
        ("/number", "3", None),
    ]
    main, *given = fake.calls
    assert main["response_format"] == {"type": "json_object"}
    assert len(given) == 4 and not any(call.get("stream") or "response_format" in call for call in given)


@pytest.mark.parametrize("stream", [False, True])
async def test_where_the_engine_cannot_score_it_the_answer_is_skipped(
    stream: bool,
) -> None:
    fake = scoring()
    fake.scores = False
    async with running(fake), serving(fake.url) as gateway:
        fake.forget()
        response = await gateway.post(chat(**{**FORM, "modint": {}}, stream=stream))
    assert response.headers["x-modint-reason"] == "structured_output"
    assert len(fake.calls) == 1


class Shape(BaseModel):
    colour: str
    number: int


async def test_the_official_client_parses_it_and_finds_the_spans() -> None:
    async with running(scoring()) as fake, serving(fake.url) as gateway:
        body = chat(modint={"relevant": "image"})
        parsed = await gateway.openai.chat.completions.parse(
            model=body["model"],
            messages=body["messages"],
            response_format=Shape,
            extra_body={"modint": body["modint"]},
        )
    assert parsed.choices[0].message.parsed == Shape(colour="blue", number=3)
    report = (parsed.model_extra or {})["modint"]
    assert [span["path"] for span in report["spans"] if span["cause"]] == ["/colour"]


def as_call(body: JSON, answer: JSON) -> JSON:
    """A completion or chunk whose text is the arguments of a tool call."""
    for choice in answer.get("choices", ()):
        said = choice.get("message") or choice.get("delta") or {}
        if said.get("content"):
            function = {"name": "report", "arguments": said["content"]}
            said |= {
                "content": None,
                "tool_calls": [{"index": 0, "id": "1", "type": "function", "function": function}],
            }
    return answer


TOOL = {"name": "report", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": TOOL}]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_argument_of_a_tool_call_that_the_caption_gave_is_named(stream: bool) -> None:
    async with running(scoring(damage=as_call)) as fake, serving(fake.url) as gateway:
        response = await gateway.post(chat(tools=TOOLS, stream=stream, modint={"relevant": "image"}))
    answers = [chunk for chunk in chunks(response.body) if "modint" in chunk] if stream else [response.json]
    (report,) = (answer["modint"] for answer in answers)
    assert (report["verdict"], report["cause"]) == ("flagged", "text")
    (span,) = (span for span in report["spans"] if span["cause"])
    assert (span["path"], span["start"], span["text"]) == (
        "/tool_calls/0/function/arguments/colour",
        12,
        "blue",
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("parser", ["reasoning", "none"])
async def test_a_call_behind_reasoning_is_judged_by_its_arguments(stream: bool, parser: str) -> None:
    """The engine writes the reasoning into a field of its own, or leaves it in the content."""
    thought = ("<think>", " blue?", " </think>")

    def reasoned(body: JSON) -> Answer:
        answer = record(body)
        if body["messages"][-1]["role"] == "assistant" or "prompt_logprobs" in body:
            return answer
        return Answer(
            f"{''.join(thought)} {answer.text}", tops=(*({word: 0.9} for word in thought), *answer.tops)
        )

    def behind(body: JSON, answer: JSON) -> JSON:
        for choice in answer.get("choices", ()):
            said = choice.get("message") or choice.get("delta") or {}
            if not said.get("content"):
                continue
            before, mark, arguments = said.pop("content").rpartition("</think> ")
            function = {"name": "report", "arguments": arguments}
            if parser == "reasoning":
                said["reasoning_content"] = before or None
            else:
                said["content"] = before + mark or None
            said["tool_calls"] = [{"index": 0, "id": "1", "type": "function", "function": function}]
        return answer

    fake = scoring(damage=behind)
    fake.script = reasoned
    async with running(fake), serving(fake.url) as gateway:
        fake.forget()
        response = await gateway.post(chat(tools=TOOLS, stream=stream, modint={"relevant": "image"}))
    answers = [chunk for chunk in chunks(response.body) if "modint" in chunk] if stream else [response.json]
    (report,) = (answer["modint"] for answer in answers)
    assert (report["verdict"], report["cause"], report["reasoning"]) == ("flagged", "text", True)
    assert [span["path"] for span in report["spans"] if span["cause"]] == [
        "/tool_calls/0/function/arguments/colour"
    ]


# -- /v1/responses ------------------------------------------------------------------------------------------

SCHEMA = {"type": "json_schema", "name": "shape", "schema": {"type": "object"}}


def as_function_call(body: JSON, document: JSON) -> JSON:
    """A response, or the event that holds it, whose text is the arguments of a call; chats as they are."""
    response = document.get("response") or document
    output = response.get("output") if document.get("type", "") in ("", "response.completed") else None
    if not output:
        return document
    arguments = output[0]["content"][0]["text"]
    call = {"type": "function_call", "id": "fc", "call_id": "c", "name": "report", "arguments": arguments}
    called = {**response, "output": [{**call, "status": "completed"}]}
    return {**document, "response": called} if "response" in document else called


async def responded(fake: FakeUpstream, **fields: Any) -> JSON:
    """The object of a response, whole or streamed."""
    async with running(fake), serving(fake.url) as gateway:
        fake.forget()
        answer = await gateway.post(asked(**fields), "/v1/responses")
    assert answer.status == 200
    response = documents(answer.body)[-1]["response"] if fields.get("stream") else answer.json
    report: JSON = response["modint"]
    return report


@pytest.mark.parametrize("stream", [False, True])
async def test_a_leaf_of_a_response_in_a_schema_is_named_by_its_path(stream: bool) -> None:
    fake = scoring(responses=True)
    report = await responded(fake, text={"format": SCHEMA}, stream=stream)
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "teacher_forced")
    assert [(span["path"], span["text"], span["cause"]) for span in report["spans"]] == [
        ("/colour", "blue", "text"),
        ("/number", "3", None),
    ]
    main, *views = fake.calls
    assert main["text"] == {"format": SCHEMA}
    assert len(views) == 4 and not any("response_format" in view for view in views)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_argument_of_a_function_call_of_a_response_is_named_by_its_path(stream: bool) -> None:
    fake = scoring(responses=True, damage=as_function_call)
    report = await responded(fake, tools=[{"type": "function", **TOOL}], stream=stream)
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "teacher_forced")
    (span,) = (span for span in report["spans"] if span["cause"])
    assert (span["path"], span["start"]) == ("/tool_calls/0/function/arguments/colour", 12)
    views = fake.calls[1:]
    assert len(views) == 4 and all(view["tools"] == TOOLS for view in views)


async def test_a_longer_response_is_scored_as_a_whole() -> None:
    fake = FakeUpstream(script=talkative, scores=True, responses=True)
    fake.model_list = fake.model_list[:1]
    report = await responded(fake)
    assert (report["verdict"], report["method"]) == ("flagged", "teacher_forced")
    assert [span["text"] for span in report["spans"] if span["cause"]] == ["blue"]


async def test_the_official_client_parses_a_response_and_finds_the_spans() -> None:
    async with running(scoring(responses=True)) as fake, serving(fake.url) as gateway:
        fields: Any = {name: value for name, value in asked().items() if name != "modint"}
        more = {"modint": {"relevant": "image"}}
        parsed = await gateway.openai.responses.parse(**fields, text_format=Shape, extra_body=more)
    assert parsed.output_parsed == Shape(colour="blue", number=3)
    report = (parsed.model_extra or {})["modint"]
    assert [span["path"] for span in report["spans"] if span["cause"]] == ["/colour"]


async def test_a_policy_replaces_a_record_of_a_response() -> None:
    fake = scoring(responses=True)
    async with running(fake), serving(fake.url, action="abstain") as gateway:
        answer = await gateway.post(asked(text={"format": SCHEMA}), "/v1/responses")
    assert answer.headers["x-modint-action"] == "abstain"
    assert answer.json["output"][0]["content"][0]["text"].startswith("No answer is given")


# -- /v1/guard/check ----------------------------------------------------------------------------------------

GIVEN = record(chat()).text
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "report", "arguments": GIVEN}}],
}


@pytest.mark.parametrize(
    ("answer", "fields", "path"),
    [
        (GIVEN, {"response_format": {"type": "json_object"}}, "/colour"),
        ({"role": "assistant", "content": GIVEN}, {"response_format": {"type": "json_object"}}, "/colour"),
        (CALLED, {"tools": TOOLS, "tool_choice": "required"}, "/tool_calls/0/function/arguments/colour"),
        ("It is blue", {"tools": TOOLS}, None),
    ],
)
async def test_a_record_or_a_call_from_elsewhere_is_judged_value_by_value(
    answer: Any, fields: JSON, path: str | None
) -> None:
    fake = scoring()
    fake.script = talkative if path is None else record
    async with running(fake), serving(fake.url) as gateway:
        fake.forget()
        body = chat(answer=answer, modint={"relevant": "image"}, **fields)
        report = (await gateway.post(body, "/v1/guard/check")).json["modint"]
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "teacher_forced")
    assert [(span["path"], span["text"]) for span in report["spans"] if span["cause"]] == [(path, "blue")]
    own, *views = fake.calls
    assert (own["max_tokens"], len(views)) == (2, 4)
    assert not any("response_format" in call or call.get("tool_choice") == "required" for call in fake.calls)


async def test_where_the_engine_cannot_score_them_records_and_calls_from_elsewhere_are_skipped() -> None:
    fake = scoring()
    fake.scores = False
    async with running(fake), serving(fake.url) as gateway:
        forced = chat(answer=GIVEN, response_format={"type": "json_object"})
        told = [
            await gateway.post(body, "/v1/guard/check") for body in (forced, chat(answer=CALLED, tools=TOOLS))
        ]
        alone = await gateway.post(chat(answer=CALLED), "/v1/guard/check")
    assert [each.json["modint"]["reason"] for each in told] == ["structured_output", "tool_calls"]
    assert alone.json["modint"]["reason"] == "tool_calls"


@pytest.mark.parametrize(
    "answer", [{}, {"content": " "}, {"tool_calls": []}, {"tool_calls": "f"}, 7, ["blue"]]
)
async def test_an_answer_that_says_nothing_is_refused(answer: Any) -> None:
    async with running(scoring()) as fake, serving(fake.url) as gateway:
        said = await gateway.post(chat(answer=answer), "/v1/guard/check")
    assert (said.status, said.error["code"]) == (400, "invalid_answer")
