"""A client's request goes to the engine before its probes, and is served before them where it can be."""

import pytest

from tests.server.conftest import chat, serving
from tests.server.fake_upstream import FakeUpstream, is_grey, is_main, running, text_of

IMAGE = {"relevant": "image"}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_request_is_sent_first_and_views_with_a_common_beginning_one_after_the_other(
    upstream: FakeUpstream, stream: bool
) -> None:
    async with serving(upstream.url) as gateway:
        upstream.forget()
        await gateway.post(chat(stream=stream, modint={**IMAGE, "probes": ["noop"]}))
    seen = [("grey" if is_grey(b) else "picture", "caption" in text_of(b)) for b in upstream.calls]
    assert seen == [("picture", True), ("picture", False), ("grey", True), ("grey", False), ("picture", True)]


@pytest.mark.parametrize("known", [False, True])
async def test_probes_have_a_lower_priority_where_the_engine_knows_priorities(known: bool) -> None:
    async with running(FakeUpstream(priorities=known)) as fake, serving(fake.url) as gateway:
        assert (await gateway.get("/readyz")).json["capabilities"]["priority"] is known
        fake.forget()
        reply = await gateway.post(chat(modint={**IMAGE, "action": "neutralise"}, priority=-5))
        assert reply.json["modint"]["action"] == "neutralise"
    first, *others = fake.calls
    assert is_main(first) and "priority" not in first
    assert len(others) >= 2
    assert [body.get("priority") for body in others] == [1 if known else None] * len(others)
