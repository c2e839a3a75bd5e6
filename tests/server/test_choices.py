"""Several answers to one request through the gateway, whole and streamed: each on its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from tests.server.conftest import Response, Running, chat, serving
from tests.server.fake_upstream import JSON, Answer, FakeUpstream, is_main, misled, running
from tests.server.test_chat import chunks
from tests.server.test_mitigation import with_policy

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


# -- under a policy -----------------------------------------------------------------------------------------

NEUTRALISE = "action = 'neutralise'\naccept_at = 0.5"


@asynccontextmanager
async def under(policy: str, folder: Path) -> AsyncIterator[tuple[Running, FakeUpstream]]:
    """A gateway with this policy, before an engine whose answers are `divided`."""
    async with running(FakeUpstream(script=divided)) as fake, with_policy(fake, folder, policy) as gateway:
        yield gateway, fake


def texts_of(read: list[JSON]) -> dict[int, str]:
    """What each answer of a stream says."""
    said: dict[int, str] = {}
    for chunk in read:
        for choice in chunk["choices"]:
            said[choice["index"]] = said.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return said


def given(response: Response, stream: bool) -> list[str | None]:
    """What each answer says; None if it is withheld."""
    if stream:
        texts = [text for _, text in sorted(texts_of(chunks(response.body)).items())]
    else:
        texts = [choice["message"]["content"] for choice in response.json["choices"]]
    return [None if text.startswith("No answer is given") else text for text in texts]


async def test_the_official_client_gets_each_flagged_answer_mended(tmp_path: Path) -> None:
    async with under(NEUTRALISE, tmp_path) as (gateway, fake):
        found = await gateway.openai.chat.completions.create(**chat(n=3), extra_body={"modint": IMAGE})
        labels = {"model": chat()["model"], "adapter": "none", "rung": "neutralise", "outcome": "mended"}
        assert gateway.value("modint_mitigation_rungs_total", **labels) == 1  # the same words are one answer
    assert [choice.message.content for choice in found.choices] == ["red", "red", "red"]
    told = [(choice.model_extra or {})["modint"]["mitigation"] for choice in found.choices]
    assert [each and each["original"] for each in told] == ["blue", None, "blue"]
    assert len(fake.calls) == 4


async def test_a_held_stream_has_mended_answers_in_place_of_flagged_ones_alone(tmp_path: Path) -> None:
    async with under(NEUTRALISE, tmp_path) as (gateway, _):
        response = await gateway.post(chat(n=3, stream=True, modint=IMAGE))
    read = chunks(response.body)
    assert texts_of(read) == {0: "red", 1: "red", 2: "red"}
    pieces = [c["delta"].get("content") for chunk in read for c in chunk["choices"] if c["index"] == 1]
    assert [piece for piece in pieces if piece] == ["r", "ed"]  # as it came
    assert response.headers["x-modint-action"] == "neutralise"
    actions = [chunk["choices"][0]["modint"]["action"] for chunk in read if "modint" in chunk]
    assert actions == ["neutralise", "annotate", "neutralise"]


async def test_a_released_stream_corrects_each_flagged_answer_on_its_last_chunk(tmp_path: Path) -> None:
    async with under(f"{NEUTRALISE}\nstream = 'release'", tmp_path) as (gateway, _):
        read = chunks((await gateway.post(chat(n=3, stream=True, modint=IMAGE))).body)
    assert texts_of(read) == {0: "blue", 1: "red", 2: "blue"}
    told = [chunk["choices"][0]["modint"]["mitigation"] for chunk in read if "modint" in chunk]
    mended = [each and (each["answer"], each["correction"]) for each in told]
    assert mended == [("red", True), None, ("red", True)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_withheld_answer_is_withheld_alone_and_an_error_only_if_none_is_left(
    tmp_path: Path, stream: bool
) -> None:
    async with under("action = 'abstain'\nabstain_as = 'error'", tmp_path) as (gateway, fake):
        response = await gateway.post(chat(n=3, stream=stream, modint=IMAGE))
        fake.script = misled
        with pytest.raises(openai.UnprocessableEntityError):
            await gateway.openai.chat.completions.create(
                **chat(n=2), stream=stream, extra_body={"modint": IMAGE}
            )
    assert given(response, stream) == [None, "red", None]
    documents = chunks(response.body) if stream else [response.json]
    reasons = [choice["finish_reason"] for each in documents for choice in each["choices"]]
    assert [reason for reason in reasons if reason] == ["content_filter", "stop", "content_filter"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_policy_may_serve_none_that_could_not_be_judged(tmp_path: Path, stream: bool) -> None:
    async with under("unscored = 'abstain'\naction = 'neutralise'", tmp_path) as (gateway, fake):
        fake.script = lambda body: divided(body) if is_main(body) else Answer("", fault="500")
        response = await gateway.post(chat(n=3, stream=stream, modint=IMAGE))
    assert given(response, stream) == [None] * 3


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_did_not_come_is_no_answer_that_is_left(tmp_path: Path, stream: bool) -> None:
    async with under("action = 'abstain'\nabstain_as = 'error'", tmp_path) as (gateway, fake):
        fake.script = lambda body: replace(misled(body), others=(misled(body),))
        response = await gateway.post(chat(n=3, stream=stream, modint=IMAGE))
    assert response.error["code"] == "modality_interference"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("abstain_as", ["content_filter", "error"])
async def test_of_answers_that_did_not_come_nothing_is_said(
    tmp_path: Path, stream: bool, abstain_as: str
) -> None:
    policy = f"unscored = 'abstain'\naction = 'neutralise'\nabstain_as = '{abstain_as}'"
    async with under(policy, tmp_path) as (gateway, fake):
        fake.script = lambda body: (
            replace(misled(body), others=(misled(body),)) if is_main(body) else Answer("", fault="500")
        )
        response = await gateway.post(chat(n=3, stream=stream, modint=IMAGE))
    if abstain_as == "error":
        assert response.error["code"] == "modality_interference"
    else:
        assert given(response, stream) == [None, None]
