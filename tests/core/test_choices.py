"""Several answers to one request: each is judged on its own, and the views are asked once."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import pytest

from modint_guard import Guard, GuardConfig, verdict
from modint_guard.chat.eligibility import MAX_CHOICES
from modint_guard.chat.reply import answers_of
from modint_guard.errors import EndpointError
from modint_guard.examination import QUICK_TOKENS
from modint_guard.mitigation.ladder import served
from modint_guard.mitigation.policy import Policy
from modint_guard.probing.once import Once
from modint_guard.report import Inspection, Report, Verdict, first_concern
from modint_guard.types import JSON, Cause, Complete, State
from tests.core.fakes import ask, completion, reads, scored_prompt, sees_picture

LIE = "The caption says blue."
T = TypeVar("T")
NAMED = Policy(action="neutralise", accept_at=0.5, trust_guess=True)


def sampler(*words: str) -> tuple[list[JSON], Complete]:
    """Says each of these words; without the caption red is what the picture shows."""
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        await asyncio.sleep(0)
        asked = {**body, "messages": body["messages"][:1]}
        read, seen = reads(asked, LIE), sees_picture(asked)
        top = (
            {"blue": 0.54, "red": 0.45}
            if read and seen
            else {"red": 0.9999}
            if seen
            else {"blue": 0.9, "red": 0.1}
        )
        tops: list[Mapping[str, float]] = [top, {" indeed": 0.9, " so": 0.1}]
        if "prompt_logprobs" in body:
            given = body["messages"][-1]["content"].split(" ")
            return scored_prompt([given[0], " indeed"], tops)
        if body.get("n") is None:
            said = completion(max(top, key=top.__getitem__), [top])
            if "max_tokens" in body and any(" " in word for word in words):
                said["choices"][0]["finish_reason"] = "length"
            return said
        answers = [completion(word, tops[: len(word.split(" "))])["choices"][0] for word in words]
        for answer, word in zip(answers, words, strict=True):
            answer["logprobs"]["content"][0] |= {"token": word.split(" ")[0]}
        return {**completion(""), "choices": [{**each, "index": n} for n, each in enumerate(answers)]}

    return calls, complete


async def inspected(model: Complete, n: object, *policies: Policy) -> Inspection:
    guard = Guard(GuardConfig(teacher_forcing=True, policies=policies))
    body = ask(f"{LIE}\nWhat colour is the ball in the picture?", n=n, modint={"context": LIE})
    return await guard.inspect(body, model)


async def test_each_answer_has_its_own_object_and_the_first_concern_is_that_of_the_whole() -> None:
    calls, model = sampler("red", "blue", "blue")
    found = await inspected(model, 3)
    objects = [verdict(choice) for choice in found.completion["choices"]]
    assert [(each.verdict, each.choice) for each in objects if each] == [
        ("pass", 0),
        ("flagged", 1),
        ("flagged", 2),
    ]
    assert (found.report.choice, found.report.verdict.cause) == (1, Cause.TEXT)
    assert found.completion["modint"] == found.completion["choices"][1]["modint"]
    assert len(calls) == 1 + 3


async def test_answers_of_several_words_are_scored_each_once() -> None:
    calls, model = sampler("red indeed", "blue indeed", "blue indeed")
    found = await inspected(model, 3)
    assert [choice["modint"]["verdict"] for choice in found.completion["choices"]] == [
        "pass",
        "flagged",
        "flagged",
    ]
    assert sum("prompt_logprobs" in call for call in calls) == 2 * 3
    assert sum("prompt_logprobs" not in call for call in calls) == 1 + 3


async def test_reading_and_judging_each_of_several_large_answers_is_left_to_run() -> None:
    taken: list[str] = []

    async def run(work: Callable[[], T]) -> T:
        taken.append("work")
        return work()

    _, model = sampler("red", "blue")
    guard = Guard()
    plan = guard.plan(ask(f"{LIE}\nWhat colour is the ball in the picture?", n=2, modint={"context": LIE}))
    async with guard.examine(plan, model, run=run) as examination:
        answers = answers_of(await model(examination.body), 2)
        long = [replace(each, positions=each.positions * (QUICK_TOKENS + 1)) for each in answers]
        reports = await examination.reports_on(lambda: long, is_large=True)
        once = len(taken)
    taken.clear()
    async with guard.examine(plan, model, run=run) as examination:
        await examination.reports_on(lambda: [long[0], long[0]], is_large=True)  # of the same words
    assert [each.verdict.state for each in reports] == [State.PASS, State.FLAGGED]
    assert once - len(taken) >= 2  # the second's own reading and judging


async def test_what_made_a_word_likelier_that_was_drawn_by_chance_is_not_neglected() -> None:
    # The request itself prefers "blue"; without the picture "red" falls from .45 to .1.
    _, model = sampler("red indeed", "blue indeed")
    guard = Guard(GuardConfig(teacher_forcing=True))
    options = {"context": LIE, "relevant": "image"}
    body = ask(f"{LIE}\nWhat colour is the ball in the picture?", n=2, modint=options)
    found = await guard.inspect(body, model)
    verdicts = [choice["modint"]["verdict"] for choice in found.completion["choices"]]
    assert verdicts == ["pass", "flagged"]


async def test_an_answer_that_the_engine_left_out_is_unscored() -> None:
    _, model = sampler("red", "red")
    found = await inspected(model, 3)
    assert (found.report.verdict.reason, found.report.choice) == ("incomplete", 2)
    assert len(found.completion["choices"]) == 2


@pytest.mark.parametrize("n", [MAX_CHOICES + 1, "two", 0])
async def test_too_many_are_skipped(n: object) -> None:
    calls, model = sampler("red", "blue")
    found = await inspected(model, n)
    assert found.report.verdict.reason == "multiple_choices" and len(calls) == 1


def said(found: Inspection) -> list[str]:
    return [choice["message"]["content"] for choice in found.completion["choices"]]


async def test_a_flagged_answer_is_corrected_and_the_others_stay() -> None:
    calls, model = sampler("red", "blue", "blue")
    found = await inspected(model, 3, NAMED)
    assert said(found) == ["red", "red", "red"]
    told = [choice["modint"]["mitigation"] for choice in found.completion["choices"]]
    assert told[0] is None and told[1] == told[2]  # the same words are corrected once
    assert (told[1]["original"], told[1]["answer"]) == ("blue", "red")
    assert len(calls) == 1 + 3


async def test_longer_answers_are_generated_again_each_for_its_share_of_what_a_request_may_cost() -> None:
    # A view took 60 tokens, an answer has two: a call may cost 62. Two flagged answers have 62 of 125 each.
    for most, outcomes in ((125, ["mended", "mended"]), (123, ["budget", "budget"])):
        calls, model = sampler("blue indeed", "red indeed", "Blue indeed")
        found = await inspected(model, 3, replace(NAMED, max_tokens=most))
        told = [choice["modint"]["mitigation"] for choice in found.completion["choices"]]
        assert [each and each["rungs"][0]["outcome"] for each in told] == [outcomes[0], None, outcomes[1]]
        generated = [call for call in calls if "n" not in call and "max_tokens" not in call]
        assert len(generated) == 2 * (most > 124)


async def test_each_answer_is_withheld_on_its_own() -> None:
    _, model = sampler("red", "blue")
    found = await inspected(model, 2, Policy(action="abstain"))
    kept, withheld = found.completion["choices"]
    assert (kept["message"]["content"], kept["finish_reason"]) == ("red", "stop")
    assert withheld["message"]["content"].startswith("No answer is given")
    assert withheld["finish_reason"] == "content_filter"


async def test_the_adapter_is_asked_for_one_answer_in_place_of_each_flagged_one() -> None:
    _, model = sampler("red", "blue")

    async def with_adapter(body: JSON) -> JSON:
        return completion("red", [{"red": 0.9999}]) if body["model"] == "robust-lora" else await model(body)

    found = await inspected(with_adapter, 2, Policy(action="escalate", trust_guess=True))
    assert said(found) == ["red", "red"]
    asked = [row.outcome for row in found.report.mitigation.rungs] if found.report.mitigation else []
    assert [str(each) for each in asked] == ["mended"]


async def test_those_that_could_not_be_judged_are_withheld_by_a_policy_that_says_so() -> None:
    async def odd(body: JSON) -> JSON:
        found = await sampler("red", "blue")[1](body)
        return {**found, "choices": [{**each, "logprobs": 7} for each in found["choices"]]}

    guard = Guard(GuardConfig(policies=(Policy(unscored="abstain"),)))
    plan = guard.plan(ask(f"{LIE}\nWhat colour is the ball?", n=2))
    async with guard.examine(plan, odd) as examination:
        completed = await odd(examination.body)
        reports = await examination.reports_on(lambda: answers_of(completed, 2))
    shown = served(completed, reports)
    assert all("could not be judged" in choice["message"]["content"] for choice in shown["choices"])


def test_what_is_flagged_comes_before_what_is_unscored_and_that_before_the_rest() -> None:
    reports = [Report(Verdict(state)) for state in (State.PASS, State.UNSCORED, State.FLAGGED)]
    assert [first_concern(reports[:count]) for count in (1, 2, 3)] == reports


async def test_a_body_is_sent_once_and_who_stops_waiting_does_not_stop_it() -> None:
    calls: list[JSON] = []
    gate = asyncio.Event()

    async def slow(body: JSON) -> JSON:
        calls.append(body)
        await gate.wait()
        return {"said": len(calls)}

    once, body = Once(slow), {"model": "m"}
    first, second = asyncio.create_task(once(body)), asyncio.create_task(once(body))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second == await once(body) == {"said": 1}
    assert await once({"model": "m"}) == {"said": 2}
    await once.close()


async def test_closing_ends_the_calls_and_an_error_reaches_everyone_who_asked() -> None:
    async def never(body: JSON) -> JSON:
        if body.get("fails"):
            raise EndpointError("gone")
        await asyncio.Event().wait()
        return {}

    once, failing = Once(never), {"fails": True}
    for _ in range(2):
        with pytest.raises(EndpointError, match="gone"):
            await once(failing)
    waiting = asyncio.create_task(once({}))
    await asyncio.sleep(0)
    await once.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
