"""Several answers to one request through the gateway, whole and streamed: each with its own verdict."""

from dataclasses import replace

import pytest

from tests.server.conftest import chat, serving
from tests.server.fake_upstream import JSON, Answer, FakeUpstream, misled, running
from tests.server.test_chat import chunks

IMAGE = {"relevant": "image"}


def divided(body: JSON) -> Answer:
    """`misled`, and once in three what the picture shows."""
    answer = misled(body)
    return replace(answer, others=(replace(answer, text="red"), answer))


async def test_each_choice_of_a_whole_answer_has_its_own_verdict_and_views_are_asked_once() -> None:
    async with running(FakeUpstream(script=divided)) as fake, serving(fake.url) as gateway:
        fake.forget()
        response = await gateway.post(chat(n=3, modint=IMAGE))
    objects = [choice["modint"] for choice in response.json["choices"]]
    verdicts = [(each["choice"], each["verdict"]) for each in objects]
    assert verdicts == [(0, "flagged"), (1, "pass"), (2, "flagged")]
    assert response.json["modint"] == objects[0]
    assert response.headers["x-modint-verdict"] == "flagged"
    assert [call.get("n") for call in fake.calls] == [3, None, None, None]


async def test_the_official_client_reads_the_object_of_each_choice() -> None:
    async with running(FakeUpstream(script=divided)) as fake, serving(fake.url) as gateway:
        found = await gateway.openai.chat.completions.create(**chat(n=3), extra_body={"modint": IMAGE})
    verdicts = [(choice.model_extra or {})["modint"]["verdict"] for choice in found.choices]
    assert verdicts == ["flagged", "pass", "flagged"]


async def test_the_answers_of_a_stream_come_at_once_and_end_together_with_their_verdicts() -> None:
    async with running(FakeUpstream(script=divided)) as fake, serving(fake.url) as gateway:
        response = await gateway.post(chat(n=3, stream=True, modint=IMAGE))
    read = chunks(response.body)
    ended = [any(choice.get("finish_reason") for choice in chunk["choices"]) for chunk in read]
    assert ended == [False] * (len(read) - 3) + [True] * 3
    for index, (chunk, expected) in enumerate(zip(read[-3:], ("flagged", "pass", "flagged"), strict=True)):
        (choice,) = chunk["choices"]
        found = choice["modint"]
        assert (choice["index"], found["choice"], found["verdict"]) == (index, index, expected)
        assert chunk["modint"] == choice["modint"]
    said = dict.fromkeys(range(3), "")
    for chunk in read:
        for choice in chunk["choices"]:
            said[choice["index"]] += choice["delta"].get("content") or ""
    assert said == {0: "blue", 1: "red", 2: "blue"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_missing_answer_costs_the_others_nothing(stream: bool) -> None:
    def short(body: JSON) -> Answer:
        return replace(misled(body), others=(replace(misled(body), text="red"),))

    async with running(FakeUpstream(script=short)) as fake, serving(fake.url) as gateway:
        response = await gateway.post(chat(n=3, stream=stream, modint=IMAGE))
    assert response.status == 200
    ends = chunks(response.body)[-2:] if stream else [response.json]
    told = [choice["modint"]["verdict"] for end in ends for choice in end["choices"]]
    assert told == ["flagged", "pass"]
