"""With `MODINT_SAMPLE` a share of the requests is judged; all others are answered as they are, and say so."""

from typing import Any

import pytest

from modint_server.request.sampling import Sample
from tests.server.conftest import chat, serving, with_image
from tests.server.fake_upstream import BASE, FakeUpstream

HALF = f"{2**55:014x}"  # of the last 56 bits of a trace's id


def trace(last: str) -> dict[str, str]:
    return {"traceparent": f"00-{'f' * 18}{last}-{'1' * 16}-01"}


@pytest.mark.parametrize(
    ("share", "last", "taken"),
    [
        (1, "0" * 14, True),
        (0, "f" * 14, False),
        (0.5, HALF, True),
        (0.5, f"{2**55 - 1:014x}", False),
        (0.1, f"{round(0.9 * 2**56):014x}", True),
        (0.1, f"{round(0.9 * 2**56) - 1:014x}", False),
    ],
)
def test_a_trace_is_drawn_by_the_last_bits_of_its_id(share: float, last: str, taken: bool) -> None:
    assert Sample(share).takes(trace(last)) is taken


def test_a_request_without_a_trace_is_drawn_by_chance() -> None:
    numbers = iter([2**55, 2**55 - 1])
    sample = Sample(0.5, lambda bits: next(numbers))
    assert [sample.takes({}), sample.takes({})] == [True, False]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_drawn_is_answered_as_it_is_and_counted(
    upstream: FakeUpstream, stream: bool
) -> None:
    async with serving(upstream.url, sample=0) as gateway:
        upstream.forget()
        sent = chat(stream=stream)
        reply = await gateway.post(sent)
        assert (reply.status, upstream.calls) == (200, [sent])
        assert reply.headers["x-modint-verdict"] == "skipped"
        assert reply.headers["x-modint-reason"] == "sampled_out"
        assert b"modint" not in reply.body
        assert gateway.value("modint_probe_skipped_total", model=BASE, reason="sampled_out") == 1
        assert gateway.value("modint_sample_ratio") == 0


async def test_the_share_of_traces_is_judged(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, sample=0.5) as gateway:
        upstream.forget()
        drawn = await gateway.post(chat(), **trace(HALF))
        left = await gateway.post(chat(), **trace("0" * 14))
    assert (drawn.headers["x-modint-verdict"], left.headers["x-modint-verdict"]) == ("flagged", "skipped")
    assert len(upstream.calls) == 4 + 1


@pytest.mark.parametrize("body", [chat(modint={"mode": "on"}), chat()])
async def test_what_asks_to_be_judged_is_judged(upstream: FakeUpstream, body: dict[str, Any]) -> None:
    headers = {} if "modint" in body else {"x_modint_mode": "on"}
    async with serving(upstream.url, sample=0) as gateway:
        assert (await gateway.post(body, **headers)).headers["x-modint-verdict"] == "flagged"
        check = await gateway.post({**chat(), "answer": "blue"}, "/v1/guard/check")
        assert check.json["modint"]["verdict"] != "skipped"


async def test_a_request_without_a_picture_is_not_drawn_for(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, sample=0) as gateway:
        words = {"model": BASE, "messages": [{"role": "user", "content": "What is two plus three?"}]}
        assert (await gateway.post(words)).headers["x-modint-reason"] == "no_image"


async def test_limits_hold_for_what_is_not_drawn(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, sample=0, max_image_pixels=4) as gateway:
        assert (await gateway.post(chat())).error["code"] == "image_too_large"
        assert (await gateway.post(with_image({"url": "data:image/png;base64,AAAA"}))).status == 400


async def test_responses_are_drawn_too(upstream: FakeUpstream) -> None:
    upstream.responses = True
    async with serving(upstream.url, sample=0) as gateway:
        picture = chat()["messages"][0]["content"][0]["image_url"]["url"]
        content = [{"type": "input_image", "image_url": picture}, {"type": "input_text", "text": "What?"}]
        asked = {"model": BASE, "input": [{"role": "user", "content": content}]}
        reply = await gateway.post(asked, "/v1/responses")
    assert (reply.status, reply.headers["x-modint-reason"]) == (200, "sampled_out")
