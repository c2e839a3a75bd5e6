"""Views wait for answers where longer ones were seen, and only there."""

from collections.abc import AsyncIterator

import pytest

from modint_guard.report import Report, Verdict
from modint_guard.types import FIRST_TOKEN, TEACHER_FORCED, State
from modint_server.request.answer_lengths import FEWEST, KEPT, SHARE, AnswerLengths
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import FakeUpstream, misled, running, talkative
from tests.server.test_longer_answers import report_of

IMAGE = {"relevant": "image"}


def report(method: str, state: State = State.PASS) -> Report:
    return Report(Verdict(state), method=method)


def seen(*methods: str) -> AnswerLengths:
    lengths = AnswerLengths()
    for method in methods:
        lengths.judged("k", "a", report(method))
    return lengths


def test_nothing_is_expected_before_enough_answers_of_that_client_and_model() -> None:
    assert not seen(*[TEACHER_FORCED] * (FEWEST - 1)).are_mostly_longer("k", "a")
    lengths = seen(*[TEACHER_FORCED] * FEWEST)
    assert lengths.are_mostly_longer("k", "a")
    assert not lengths.are_mostly_longer("other", "a") and not lengths.are_mostly_longer("k", "b")


def test_answers_of_one_word_among_the_last_ones_count_against_it() -> None:
    few = int(KEPT * (1 - SHARE))
    assert seen(*[TEACHER_FORCED] * KEPT, *[FIRST_TOKEN] * few).are_mostly_longer("k", "a")
    assert not seen(*[TEACHER_FORCED] * KEPT, *[FIRST_TOKEN] * (few + 1)).are_mostly_longer("k", "a")
    assert seen(*[FIRST_TOKEN] * KEPT, *[TEACHER_FORCED] * KEPT).are_mostly_longer("k", "a")


def test_answers_of_which_nothing_was_to_be_judged_tell_nothing_and_late_views_do() -> None:
    lengths = seen(*[TEACHER_FORCED] * FEWEST)
    for _ in range(KEPT):
        lengths.judged("k", "a", report(FIRST_TOKEN, State.SKIPPED))
    assert lengths.are_mostly_longer("k", "a")
    for _ in range(KEPT):
        lengths.judged("k", "a", report(FIRST_TOKEN, State.UNSCORED))
    assert not lengths.are_mostly_longer("k", "a")


@pytest.fixture
async def gateway() -> AsyncIterator[tuple[Running, FakeUpstream]]:
    fake = FakeUpstream(script=talkative, scores=True)
    fake.model_list = fake.model_list[:1]  # the base alone
    async with running(fake), serving(fake.url, noop_every=0) as started:
        yield started, fake


@pytest.mark.parametrize("stream", [False, True])
async def test_after_many_longer_answers_a_view_is_one_call_and_the_verdict_the_same(
    gateway: tuple[Running, FakeUpstream], stream: bool
) -> None:
    started, fake = gateway
    fake.forget()
    first = await report_of(started, stream=stream)
    assert len(fake.calls) == 7
    for _ in range(FEWEST - 1):
        await report_of(started, stream=stream)
    fake.forget()
    later = await report_of(started, stream=stream)
    assert len(fake.calls) == 4
    found = [
        [(row["name"], row["outcome"], row["divergence"]) for row in each.pop("probes")]
        for each in (first, later)
    ]
    assert found[0] == found[1] and first == later


async def test_a_word_after_many_longer_answers_is_judged_like_the_first(
    gateway: tuple[Running, FakeUpstream],
) -> None:
    started, fake = gateway
    fake.script = misled
    first = (await started.post(chat(modint=IMAGE))).json["modint"]
    fake.script = talkative
    for _ in range(FEWEST):
        await started.post(chat(modint=IMAGE))
    fake.script = misled
    fake.forget()
    later = (await started.post(chat(modint=IMAGE))).json["modint"]
    assert len(fake.calls) == 4 and not any("prompt_logprobs" in body for body in fake.calls)
    assert (later["verdict"], later["cause"], later["method"]) == ("flagged", "text", "first_token")
    assert later["score"] == first["score"]
