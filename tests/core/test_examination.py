"""The examination of one request: what goes to the engine, and what becomes of it if something fails."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.chat.reply import reply_of
from modint_guard.errors import EndpointError
from modint_guard.examination import QUICK_TOKENS
from modint_guard.mitigation.policy import Policy
from modint_guard.types import JSON, Reply, State
from tests.core.fakes import ask, world

MISLED = world(both="blue", image="red", text="blue", neither="round")
T = TypeVar("T")
BODY = ask("The ball is blue.\nWhat colour is the ball in the picture?", modint={"relevant": "image"})


def unreadable() -> Reply:
    raise ValueError("no completion at all")


async def test_the_body_asks_for_log_probabilities_and_holds_no_field_of_ours() -> None:
    guard = Guard()
    body = guard.examine(guard.plan(BODY), MISLED).body
    assert (body["logprobs"], body["top_logprobs"], "modint" in body) == (True, 20, False)


async def test_an_answer_is_judged_once_it_is_complete() -> None:
    guard = Guard()
    async with guard.examine(guard.plan(BODY), MISLED) as examination:
        completion = await MISLED(examination.body)
        report = await examination.report_on(lambda: reply_of(completion))
    assert (report.verdict.state, report.verdict.cause) == (State.FLAGGED, "text")
    assert examination.answer is not None and examination.answer.text == "blue"


async def test_an_answer_that_cannot_be_read_is_unscored_and_its_probes_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Guard()
    async with guard.examine(guard.plan(BODY), MISLED) as examination:
        report = await examination.report_on(unreadable)
    assert (report.verdict.state, report.verdict.reason) == (State.UNSCORED, "incomplete")
    assert [probe.name for probe in report.probes] == ["no_context", "neutral_image", "prior"]
    assert examination.answer is None
    assert "the answer could not be read" in caplog.text


async def test_an_answer_that_cannot_be_judged_is_unscored(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard()
    answer = Reply("blue", "stop", "blue", top=5)  # type: ignore[arg-type]
    async with guard.examine(guard.plan(BODY), MISLED) as examination:
        report = await examination.report_on(lambda: answer)
    assert (report.verdict.state, report.verdict.reason) == (State.UNSCORED, "incomplete")
    assert "could not be judged" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "is_large", "left"), [(1, False, False), (1, True, True), (QUICK_TOKENS + 1, False, True)]
)
async def test_reading_a_large_answer_and_judging_a_long_one_are_left_to_run(
    tokens: int, is_large: bool, left: bool
) -> None:
    taken: list[str] = []

    async def run(work: Callable[[], T]) -> T:
        taken.append("work")
        return work()

    guard = Guard()
    async with guard.examine(guard.plan(BODY), MISLED, run=run) as examination:
        answer = reply_of(await MISLED(examination.body))
        answer = replace(answer, positions=answer.positions[:1] * tokens)
        report = await examination.report_on(lambda: answer, is_large=is_large)
    assert (report.verdict.state, bool(taken)) == (State.FLAGGED, left)


async def test_leaving_the_context_cancels_what_is_under_way() -> None:
    guard = Guard()
    started, ended = 0, 0

    async def slow(body: JSON) -> JSON:
        nonlocal started, ended
        started += 1
        try:
            await asyncio.sleep(60)
        finally:
            ended += 1
        return {}

    async with guard.examine(guard.plan(BODY), slow):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert (started, ended) == (3, 3)


async def test_a_correction_that_fails_leaves_the_answer_and_gives_the_budget_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        given_back = 0

        def take(self, wanted: int) -> int:
            return "all of it"  # type: ignore[return-value]

        def give_back(self, tokens: int) -> None:
            self.given_back += 1

    guard, budget = Guard(GuardConfig(policies=(Policy("neutralise"),))), Broken()
    async with guard.examine(guard.plan(BODY), MISLED, budget=budget) as examination:
        completion = await MISLED(examination.body)
        report = await examination.report_on(lambda: reply_of(completion))
    assert (report.verdict.state, report.mitigation, budget.given_back) == (State.FLAGGED, None, 1)
    assert "the correction failed" in caplog.text


async def test_an_adapter_that_cannot_be_asked_is_left_out_of_the_policy() -> None:
    guard = Guard(GuardConfig(policies=(Policy("escalate", robust="robust-lora"),)))
    plan = guard.plan(BODY)
    assert guard.examine(plan, MISLED).policy.robust == "robust-lora"
    assert guard.examine(plan, MISLED, usable=lambda adapter: False).policy.robust == ""


async def test_an_answer_from_elsewhere_is_judged_and_never_corrected() -> None:
    guard = Guard(GuardConfig(policies=(Policy("neutralise"),)))
    async with guard.examine(guard.plan(BODY), MISLED, given="Blue it is.") as examination:
        assert (examination.body["max_tokens"], examination.body["temperature"]) == (2, 0)
        completion = await MISLED(examination.body)
        report = await examination.report_on(lambda: reply_of(completion))
    assert (report.verdict.state, report.mitigation) == (State.FLAGGED, None)


@pytest.mark.parametrize(
    ("status", "ours"), [(400, True), (422, True), (401, False), (429, False), (500, False)]
)
def test_only_a_refusal_that_another_body_may_change_is_taken_for_ours(status: int, ours: bool) -> None:
    guard = Guard()
    examination = guard.examine(guard.plan(BODY), MISLED)
    assert examination.refused_additions(EndpointError("no", status=status)) is ours
    skipped = guard.examine(guard.plan({**BODY, "modint": {"mode": "off"}}), MISLED)
    assert not skipped.refused_additions(EndpointError("no", status=status))


async def test_a_request_that_is_not_probed_asks_nothing_besides() -> None:
    guard, calls = Guard(), []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        return await MISLED(body)

    async with guard.examine(guard.plan({**BODY, "modint": {"mode": "off"}}), complete) as examination:
        completion = await complete(examination.body)
        report = await examination.report_on(lambda: reply_of(completion))
    assert (report.verdict.state, report.verdict.reason, len(calls)) == (State.SKIPPED, "opted_out", 1)


def test_nothing_of_a_healthy_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard()

    async def examined() -> None:
        async with guard.examine(guard.plan(BODY), MISLED) as examination:
            completion = await MISLED(examination.body)
            await examination.report_on(lambda: reply_of(completion))

    with caplog.at_level(logging.INFO, logger="modint_guard"):
        asyncio.run(examined())
    assert caplog.text == ""
