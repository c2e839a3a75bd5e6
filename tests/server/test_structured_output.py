"""JSON answers through the gateway: judged leaf by leaf where the engine can score them, streamed or not."""

from typing import Any

import pytest
from pydantic import BaseModel

from tests.server.conftest import chat, serving
from tests.server.fake_upstream import JSON, Answer, FakeUpstream, misled, running
from tests.server.test_chat import chunks

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


@pytest.mark.parametrize("stream", [False, True])
async def test_the_argument_of_a_tool_call_that_the_caption_gave_is_named(stream: bool) -> None:
    tools = [{"type": "function", "function": {"name": "report", "parameters": {"type": "object"}}}]
    async with running(scoring(damage=as_call)) as fake, serving(fake.url) as gateway:
        response = await gateway.post(chat(tools=tools, stream=stream, modint={"relevant": "image"}))
    answers = [chunk for chunk in chunks(response.body) if "modint" in chunk] if stream else [response.json]
    (report,) = (answer["modint"] for answer in answers)
    assert (report["verdict"], report["cause"]) == ("flagged", "text")
    (span,) = (span for span in report["spans"] if span["cause"])
    assert (span["path"], span["start"], span["text"]) == (
        "/tool_calls/0/function/arguments/colour",
        12,
        "blue",
    )
