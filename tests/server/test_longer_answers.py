"""Longer answers through the gateway: scored as a whole where the engine can, whole and streamed."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modint_guard.probing.teacher_forcing import LAST_ROWS
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import FakeUpstream, running, talkative
from tests.server.test_chat import chunks

IMAGE = {"relevant": "image"}


@pytest.fixture
async def scoring() -> AsyncIterator[FakeUpstream]:
    fake = FakeUpstream(script=talkative, scores=True)
    fake.model_list = fake.model_list[:1]  # the base alone
    async with running(fake):
        yield fake


async def test_beside_adapters_no_answer_is_scored_as_a_whole() -> None:
    async with running(FakeUpstream(script=talkative, scores=True)) as fake, serving(fake.url) as gateway:
        assert not (await gateway.get("/readyz")).json["capabilities"]["teacher_forcing"]
        assert not any("prompt_logprobs" in call for call in fake.calls)
        report = await report_of(gateway, stream=False)
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "regenerated")


async def test_beside_adapters_it_is_if_the_operator_says_that_the_engine_can() -> None:
    fake = FakeUpstream(script=talkative, scores=True)
    async with running(fake), serving(fake.url, teacher_forcing="on") as gateway:
        assert (await gateway.get("/readyz")).json["capabilities"]["teacher_forcing"]
        report = await report_of(gateway, stream=False)
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "teacher_forced")


async def report_of(gateway: Running, *, stream: bool) -> dict[str, Any]:
    response = await gateway.post(chat(modint=IMAGE, stream=stream))
    assert response.status == 200
    if not stream:
        report: dict[str, Any] = response.json["modint"]
        return report
    (finish,) = (chunk for chunk in chunks(response.body) if "modint" in chunk)
    last: dict[str, Any] = finish["modint"]
    return last


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_follows_the_caption_in_its_last_word_is_flagged(
    scoring: FakeUpstream, stream: bool
) -> None:
    async with serving(scoring.url) as gateway:
        assert (await gateway.get("/readyz")).json["capabilities"]["teacher_forcing"]
        scoring.forget()
        report = await report_of(gateway, stream=stream)
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "teacher_forced")
    assert report["answers"] == {"image_only": "red", "text_only": "It is blue"}
    assert [(span["text"], span["start"], span["cause"]) for span in report["spans"]] == [
        ("blue", 6, "text"),
        ("It", 0, None),
        ("is", 3, None),
    ]
    assert len(scoring.calls) == 7
    forced = [body for body in scoring.calls if "prompt_logprobs" in body]
    assert [body["messages"][-1] for body in forced] == [{"role": "assistant", "content": "It is blue"}] * 3
    assert not any(body.get("stream") for body in forced)


async def test_an_engine_that_can_scores_the_answer_alone_and_the_report_is_the_same() -> None:
    reports, asked = {}, {}
    for able in (True, False, None):
        fake = FakeUpstream(script=talkative, scores=True, last_rows=able)
        fake.model_list = fake.model_list[:1]
        async with running(fake), serving(fake.url) as gateway:
            capabilities = (await gateway.get("/readyz")).json["capabilities"]
            assert (capabilities["teacher_forcing"], capabilities["last_rows"]) == (True, bool(able))
            fake.forget()
            reports[able] = await report_of(gateway, stream=False)
            asked[able] = [body.get("vllm_xargs") for body in fake.calls if "prompt_logprobs" in body]
            assert not any("vllm_xargs" in body for body in fake.calls if "prompt_logprobs" not in body)
    assert asked == {True: [{LAST_ROWS: 3}] * 3, False: [None] * 3, None: [None] * 3}
    told = {able: (each["cause"], each["score"], each["spans"]) for able, each in reports.items()}
    assert told[True] == told[False] == told[None]
    assert reports[True]["method"] == "teacher_forced"


async def test_token_ids_that_the_gateway_asks_for_do_not_reach_the_client(scoring: FakeUpstream) -> None:
    async with serving(scoring.url) as gateway:
        scoring.forget()
        response = await gateway.post(chat(modint=IMAGE))
        asked = await gateway.post(chat(modint=IMAGE, return_token_ids=True))
    assert any(body.get("return_token_ids") and "prompt_logprobs" not in body for body in scoring.calls)
    assert response.json["choices"][0]["token_ids"] is None
    assert len(asked.json["choices"][0]["token_ids"]) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_where_the_engine_cannot_score_it_a_short_one_is_generated_again(
    scoring: FakeUpstream, stream: bool
) -> None:
    scoring.scores = False
    async with serving(scoring.url) as gateway:
        scoring.forget()
        report = await report_of(gateway, stream=stream)
    assert (report["verdict"], report["cause"], report["method"]) == ("flagged", "text", "regenerated")
    assert report["answers"] == {"image_only": "It is red", "text_only": "It is blue"}
    assert report["risk"] is None and not report["calibrated"]
    # The request and its three cells; then the cells whole, and the request once more.
    assert len(scoring.calls) == 4 + 3 + 1
    assert [row["name"] for row in report["probes"]] == ["no_context", "neutral_image", "prior", "noop"]


@pytest.mark.parametrize("settings", [{}, {"teacher_forcing": "off"}])
async def test_otherwise_it_is_judged_at_its_first_word_and_says_so(
    scoring: FakeUpstream, settings: dict[str, Any]
) -> None:
    scoring.scores = bool(settings)
    async with serving(scoring.url, regenerate="off", **settings) as gateway:
        scoring.forget()
        report = await report_of(gateway, stream=False)
    assert (report["verdict"], report["method"]) == ("pass", "first_token")
    assert "first word" in json.dumps(report["notes"])
    assert len(scoring.calls) == 4
    assert not any("return_token_ids" in body for body in scoring.calls)


async def test_an_engine_that_then_fails_to_score_costs_no_answer(scoring: FakeUpstream) -> None:
    async with serving(scoring.url) as gateway:
        scoring.scores = False
        report = await report_of(gateway, stream=True)
    assert (report["verdict"], report["method"]) == ("flagged", "regenerated")


async def test_the_noise_floor_and_the_coverage_are_metrics(scoring: FakeUpstream) -> None:
    async with serving(scoring.url) as gateway:
        name = {"model": "tinyworld-base"}
        assert gateway.value("modint_noise_floor_ratio", **name) == 0.0
        await gateway.post(chat(modint={**IMAGE, "probes": ["noop", "black"]}))
        assert gateway.value("modint_noise_floor_ratio", **name) == 0.0
        assert gateway.value("modint_logprob_coverage_ratio_count", **name) == 1.0  # one answer
        labels = {**name, "adapter": "none", "relevant": "image", "probe": "black", "outcome": "consistent"}
        assert gateway.value("modint_probe_results_total", **labels) == 1.0
