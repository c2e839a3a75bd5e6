"""Running views under a deadline: late, failing and cancelled ones."""

import asyncio
import logging

import pytest

from modint_guard.errors import EndpointError, EndpointTimeout
from modint_guard.probing import probe
from modint_guard.types import JSON, Failure, ProbeOutcome, Reply, View
from tests.core.fakes import completion

VIEWS = tuple(View(name, {"name": name}) for name in ("no_context", "neutral_image", "prior"))
FOREVER = 60.0


def others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def quick(body: JSON) -> JSON:
    return completion(body["name"], [{body["name"]: 1.0}])


async def test_all_views_run_at_once() -> None:
    together = asyncio.Barrier(3)

    async def complete(body: JSON) -> JSON:
        await together.wait()
        return await quick(body)

    replies = await probe.run(VIEWS, complete, deadline_s=FOREVER)
    assert {name: reply.text for name, reply in replies.items() if isinstance(reply, Reply)} == {
        view.name: view.name for view in VIEWS
    }
    assert list(replies) == [view.name for view in VIEWS]
    assert not others()


async def test_a_late_view_is_a_timeout_and_is_cancelled_and_the_others_stay() -> None:
    cancelled = []

    async def complete(body: JSON) -> JSON:
        if body["name"] == "prior":
            try:
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                cancelled.append(body["name"])
                raise
        return await quick(body)

    replies = await probe.run(VIEWS, complete, deadline_s=0.05)
    late = replies["prior"]
    assert isinstance(late, Failure) and (late.outcome, late.reason) == (ProbeOutcome.TIMEOUT, "timeout")
    assert late.ms >= 50
    assert isinstance(replies["no_context"], Reply)
    assert cancelled == ["prior"]
    assert not others()


async def test_the_deadline_counts_from_the_complete_answer() -> None:
    future_answer: probe.FutureAnswer = asyncio.get_running_loop().create_future()

    async def complete(body: JSON) -> JSON:
        await asyncio.shield(future_answer)
        await asyncio.sleep(0.01)
        return await quick(body)

    async def answer_later() -> None:
        await asyncio.sleep(0.2)
        future_answer.set_result(None)

    later = asyncio.create_task(answer_later())
    replies = await probe.run(VIEWS, complete, deadline_s=0.15, future_answer=future_answer)
    assert all(isinstance(reply, Reply) for reply in replies.values())
    await later
    assert not others()


async def test_finished_views_do_not_wait_for_the_answer() -> None:
    never: probe.FutureAnswer = asyncio.get_running_loop().create_future()
    replies = await probe.run(VIEWS, quick, deadline_s=FOREVER, future_answer=never)
    assert all(isinstance(reply, Reply) for reply in replies.values())
    assert not others()


@pytest.mark.parametrize("error", [EndpointError("500"), ValueError("odd"), KeyError("choices")])
async def test_a_failing_view_becomes_a_failure_and_one_log_line(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def complete(body: JSON) -> JSON:
        if body["name"] == "prior":
            raise error
        return await quick(body)

    with caplog.at_level(logging.WARNING):
        replies = await probe.run(VIEWS, complete, deadline_s=FOREVER)
    failed = replies["prior"]
    assert isinstance(failed, Failure) and (failed.outcome, failed.reason) == (
        ProbeOutcome.ERROR,
        "upstream_error",
    )
    assert [record.message for record in caplog.records if "probe prior failed" in record.message]


async def test_an_answer_of_the_wrong_shape_is_a_failure() -> None:
    async def complete(body: JSON) -> JSON:
        return {"choices": ["red"]}

    replies = await probe.run(VIEWS[:1], complete, deadline_s=FOREVER)
    failed = replies["no_context"]
    assert isinstance(failed, Failure) and failed.reason == "upstream_error"


async def test_an_upstream_timeout_counts_as_a_timeout() -> None:
    async def complete(body: JSON) -> JSON:
        raise EndpointTimeout("late")

    replies = await probe.run(VIEWS[:1], complete, deadline_s=FOREVER)
    failed = replies["no_context"]
    assert isinstance(failed, Failure) and failed.outcome is ProbeOutcome.TIMEOUT


@pytest.mark.parametrize("with_event", [True, False])
async def test_cancelling_the_caller_cancels_every_view_and_leaves_no_task(with_event: bool) -> None:
    started, stopped = [], []

    async def complete(body: JSON) -> JSON:
        started.append(body["name"])
        try:
            await asyncio.sleep(FOREVER)
        finally:
            stopped.append(body["name"])
        return {}

    event: probe.FutureAnswer | None = asyncio.get_running_loop().create_future() if with_event else None
    running = asyncio.create_task(probe.run(VIEWS, complete, deadline_s=FOREVER, future_answer=event))
    await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(stopped) == sorted(started) == sorted(view.name for view in VIEWS)
    assert not others()


async def test_no_views_are_no_work() -> None:
    never: probe.FutureAnswer = asyncio.get_running_loop().create_future()
    assert await probe.run((), quick, deadline_s=FOREVER, future_answer=never) == {}
