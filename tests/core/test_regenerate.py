"""Short answers of several words, where the engine scores no given answer: told by the views' whole words."""

import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.chat.reply import reply_of
from modint_guard.errors import EndpointError
from modint_guard.examination import mitigate, probe
from modint_guard.mitigation.policy import Policy
from modint_guard.plan import main_body, policy_of
from modint_guard.report import Inspection, Report
from modint_guard.types import JSON, Complete
from tests.core.fakes import ask, completion, reads, sees_picture

LIE = "The ball is blue."
QUESTION = "What colour is the ball in the picture?"
BODY = ask(f"{LIE}\n{QUESTION}")
GUARD = Guard(GuardConfig(regenerate=True))


def talks(*, both: str, image: str, text: str, neither: str) -> tuple[list[JSON], Complete]:
    """A model that says whole sentences, all of which begin alike, a word a token, each with 0.992."""
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        told = reads(body, "blue.")
        said = {(True, True): both, (True, False): image, (False, True): text, (False, False): neither}[
            sees_picture(body), told
        ]
        words = [f" {word}" if place else word for place, word in enumerate(said.split())]
        words, whole = words[: body.get("max_tokens")], len(words) <= body.get("max_tokens", len(words))
        tops = [{word: 0.992, "Odd": 0.008} for word in words] if body.get("logprobs") else None
        answered = completion("".join(words), tops)
        answered["choices"][0]["finish_reason"] = "stop" if whole else "length"
        return answered

    return calls, complete


async def judged(guard: Guard, model: Complete, body: JSON = BODY) -> Report:
    return (await guard.inspect(body, model)).report


async def test_a_lie_repeated_in_the_last_word_is_flagged() -> None:
    calls, model = talks(both="It is blue.", image="It is red.", text="It is blue.", neither="It is green.")
    found = await judged(GUARD, model)
    assert (found.verdict.state, found.verdict.cause, found.verdict.risk) == ("flagged", "text", None)
    assert (found.method, found.image_only, found.text_only) == ("regenerated", "It is red.", "It is blue.")
    assert len(calls) == 4 + 4  # the request and its cells; the cells whole, and the request again
    flips = {row.name: row.flip for row in found.probes}
    assert flips == {"no_context": True, "neutral_image": False, "prior": True, "noop": False}
    assert {row.tokens for row in found.probes if row.name != "noop"} == {2 * 31}


async def test_a_first_word_that_flips_decides() -> None:
    calls, model = talks(both="It is blue.", image="Red it is.", text="It is blue.", neither="It is green.")
    found = await judged(GUARD, model)
    assert (found.verdict.cause, found.method, len(calls)) == ("text", "first_token", 4)


async def test_the_same_words_without_the_caption_need_no_other_cell() -> None:
    calls, model = talks(both="It is red.", image="it is red", text="It is blue.", neither="It is green.")
    found = await judged(GUARD, model)
    assert (found.verdict.state, found.method, found.image_only) == ("pass", "regenerated", "it is red")
    assert len(calls) == 4 + 1


async def test_an_answer_that_moves_by_itself_is_not_flagged() -> None:
    calls, steady = talks(both="It is blue.", image="It is red.", text="It is blue.", neither="It is green.")

    async def model(body: JSON) -> JSON:
        answered = await steady(body)
        if len(calls) > 4 and sees_picture(body) and reads(body, "blue."):
            return completion("It is pink.")
        return answered

    found = await judged(GUARD, model)
    assert found.verdict.state == "pass" and "noop" in found.notes[-1]


@pytest.mark.parametrize(
    ("guard", "body", "said"),
    [
        (Guard(), BODY, "It is blue."),  # switched off
        (GUARD, BODY, "blue"),  # one word
        (GUARD, BODY, "It is blue as far as I can tell from here."),  # too long
        (GUARD, {**BODY, "modint": {"relevant": "both"}}, "It is blue."),  # nothing known to be irrelevant
    ],
)
async def test_other_answers_are_judged_at_their_first_word(guard: Guard, body: JSON, said: str) -> None:
    calls, model = talks(both=said, image="It is red.", text=said, neither="It is green.")
    found = await judged(guard, model, body)
    assert found.method == "first_token" and len(calls) == 4


async def test_an_answer_that_was_cut_off_is_judged_at_its_first_word() -> None:
    calls, steady = talks(both="It is blue", image="It is red.", text="It is blue", neither="It is green.")

    async def model(body: JSON) -> JSON:
        answered = await steady(body)
        choice = {**answered["choices"][0], "finish_reason": "length"}
        return {**answered, "choices": [choice]}

    found = await judged(GUARD, model)
    assert found.method == "first_token" and len(calls) == 4


@pytest.mark.parametrize("well", [5, 7])  # 8 calls in all: the last is the unchanged request once more
async def test_where_a_view_fails_the_first_word_decides(well: int) -> None:
    calls, steady = talks(both="It is blue.", image="It is red.", text="It is blue.", neither="It is green.")

    async def model(body: JSON) -> JSON:
        if len(calls) >= well:
            raise EndpointError("busy", status=503)
        return await steady(body)

    found = await judged(GUARD, model)
    assert (found.verdict.state, found.method) == ("pass", "first_token")
    assert not any("(noop)" in note for note in found.notes)


# -- mended ----------------------------------------------------------------------------------------

SURE = Policy(action="neutralise", accept_at=0.97)


async def mended(policy: Policy, body: JSON = BODY) -> tuple[list[JSON], Inspection]:
    guard = Guard(GuardConfig(regenerate=True, policies=(policy,)))
    calls, model = talks(both="It is blue.", image="It is red.", text="It is blue.", neither="It is green.")
    asked = {**body, "max_tokens": 16, "modint": {"relevant": "image"}}
    return calls, await guard.inspect(asked, model)


def outcome(found: Inspection) -> tuple[str, str, int]:
    """Of the only rung: how it ended, and what the client then reads and what it cost."""
    assert found.report.verdict.state == "flagged" and found.report.method == "regenerated"
    assert found.report.mitigation is not None
    (rung,) = found.report.mitigation.rungs
    return rung.outcome.value, found.completion["choices"][0]["message"]["content"], rung.tokens


async def test_an_answer_flagged_by_its_words_is_mended_by_one_call_that_shows_how_sure_the_view_is() -> None:
    calls, found = await mended(SURE)
    assert outcome(found) == ("mended", "It is red.", 31)
    assert len(calls) == 1 + 1 + 4 + 1  # first words without the caption settle nothing: all cells, whole
    assert (calls[-1]["logprobs"], calls[-1]["max_tokens"]) == (True, 16)
    assert sees_picture(calls[-1]) and not reads(calls[-1], LIE)


async def test_a_view_whose_words_are_too_unlikely_mends_nothing() -> None:
    _, found = await mended(Policy(action="neutralise", accept_at=0.995))
    assert outcome(found) == ("unsure", "It is blue.", 31)


async def test_the_call_that_mends_a_whole_view_is_part_of_the_estimate() -> None:
    # as dear as the dearest so far: the view's two prompts of 30 tokens, and an answer of one
    calls, found = await mended(Policy(action="neutralise", accept_at=0.97, max_tokens=2 * 30))
    assert outcome(found) == ("budget", "It is blue.", 0)
    assert len(calls) == 6


@pytest.mark.parametrize(("accept_at", "ends"), [(0.01, "unsure"), (0.0, "mended")])
async def test_without_log_probabilities_only_a_policy_that_asks_for_no_sureness_mends(
    accept_at: float, ends: str
) -> None:
    guard = Guard(GuardConfig(regenerate=True, policies=(Policy("neutralise", accept_at=accept_at),)))
    calls, model = talks(both="It is blue.", image="It is red.", text="It is blue.", neither="It is green.")
    plan = guard.plan({**BODY, "modint": {"relevant": "image"}}, max_top_logprobs=0)
    replies = await probe(plan, guard.judge, model)
    answer = reply_of(await model(main_body(plan)))
    report = await mitigate(
        plan,
        guard.judge,
        answer,
        replies,
        guard.judge.report(plan, answer, replies),
        model,
        policy=policy_of(plan.chat, plan.options, guard.config),
    )
    assert report.mitigation is not None
    assert [each.outcome.value for each in report.mitigation.rungs] == [ends]
    assert len(calls) == 5 and not any("logprobs" in body for body in calls)  # the views are there already
