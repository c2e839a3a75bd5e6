"""The whole path of a request through the guard, with scripted models."""

import asyncio
import copy
import math
from dataclasses import replace
from typing import Any

import pytest

from modint_guard import Guard, GuardConfig, ModintOptions, Thresholds, verdict
from modint_guard.chat.rebuild import rebuild
from modint_guard.chat.relevance_rules import RelevanceRule
from modint_guard.chat.reply import given_reply, reply_of
from modint_guard.errors import EndpointError, RequestError
from modint_guard.examination import probe
from modint_guard.judge import NOTE_FIRST_TOKEN, NOTE_NOT_PREFERRED, NOTE_UNLISTED
from modint_guard.judging.calibration import Calibration
from modint_guard.judging.null import Null
from modint_guard.mitigation.policy import Policy
from modint_guard.plan import NOTE_IMAGE_ONLY, main_body
from modint_guard.report import Report
from modint_guard.types import JSON, Complete, Failure, ProbeOutcome, Relevant, Reply, State
from tests.core.fakes import GREY, RED, ask, completion, image_part, reply, sees_picture, text_part, world
from tests.core.test_calibration import made

LIE = "The ball is blue."
QUESTION = "What colour is the ball in the picture?"
SUM = "What is 2 plus 3?"
ABOUT_THE_PICTURE = ask(QUESTION, modint={"relevant": "image"})
_FLAGS = made().fitted["image"].model_copy(update={"flag_at": 0.0})
FLAGS_ALL = made(fitted={"image": _FLAGS, "text": _FLAGS})


def others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_an_answer_that_follows_a_lying_caption_is_flagged_text() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    found = await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert found.completion["choices"][0]["message"]["content"] == "blue"
    assert found.completion["modint"] == found.report.to_json()
    said = found.report.to_json()
    assert (said["verdict"], said["cause"], said["relevant"], said["relevant_source"]) == (
        "flagged",
        "text",
        "image",
        "rules",
    )
    assert said["score"] > 5 and said["risk"] is None and not said["calibrated"]  # nothing was measured
    assert said["answers"] == {"image_only": "red", "text_only": "blue"}
    assert said["examined"] == ["text", "image"]
    assert [row["name"] for row in said["probes"]] == ["no_context", "neutral_image", "prior"]
    assert said["influence"]["text"] > 1 > abs(said["influence"]["image"])
    assert not others()


async def test_a_true_caption_passes() -> None:
    model = world(both="red", image="red", text="red", neither="round", lie="red.")
    found = await Guard().inspect(ask(f"The ball is red.\n{QUESTION}"), model)
    assert found.report.verdict.state is State.PASS
    assert found.report.statistic is not None and found.report.statistic.value < 0


async def test_a_sum_answered_from_the_picture_beside_it_is_flagged_image() -> None:
    model = world(both="red", image="red", text="green", neither="green")
    found = await Guard().inspect(ask(SUM), model)
    said = found.report.to_json()
    assert (said["verdict"], said["cause"], said["relevant"]) == ("flagged", "image", "text")
    assert [row["name"] for row in said["probes"]] == ["neutral_image"]
    assert said["examined"] == ["image"]
    assert said["notes"] == [NOTE_IMAGE_ONLY]


@pytest.mark.parametrize("calibrations", [[], [FLAGS_ALL]])
@pytest.mark.parametrize("relevant", ["text", "image"])
async def test_an_answer_drawn_by_chance_is_not_flagged_where_no_view_changes_anything(
    relevant: str, calibrations: list[Calibration]
) -> None:
    async def model(body: JSON) -> JSON:
        sampled = "max_tokens" not in body  # the request at temperature 1; every view is greedy
        drawn = completion("green" if sampled else "red", [{"red": 0.6, "blue": 0.28, "green": 0.12}])
        if sampled:
            drawn["choices"][0]["logprobs"]["content"][0] |= {"token": "green", "logprob": math.log(0.12)}
        return drawn

    guard = Guard(calibrations=calibrations)
    body = ask(f"{LIE}\n{QUESTION}", temperature=1, modint={"relevant": relevant})
    found = (await guard.inspect(body, model)).report
    assert (found.verdict.state, found.notes) == (State.PASS, (NOTE_NOT_PREFERRED,))
    assert {row.outcome for row in found.probes} == {ProbeOutcome.UNDECIDED}


async def test_an_answer_that_needs_neither_is_flagged_prior() -> None:
    model = world(both="red", image="red", text="red", neither="red")
    named = ModintOptions(relevant=Relevant.IMAGE, relevant_source="request")
    for body in (ask(f"{LIE}\n{QUESTION}"), ABOUT_THE_PICTURE):
        found = await Guard().inspect(body, model, named)
        assert (found.report.verdict.state, found.report.verdict.cause) == ("flagged", "prior")


async def test_a_question_about_the_picture_without_a_context_is_skipped_for_want_of_one() -> None:
    model = world(both="red", image="red", text="green", neither="green")
    found = await Guard().inspect(ABOUT_THE_PICTURE, model)
    assert (found.report.verdict.state, found.report.verdict.reason) == ("skipped", "no_context")
    assert (found.report.text_only, len(found.report.probes)) == ("green", 1)


@pytest.mark.parametrize(
    ("question", "relevant"), [(QUESTION, "image"), ("What now?", "unknown"), (f"{SUM} {QUESTION}", "both")]
)
async def test_views_that_cannot_change_the_verdict_are_not_sent(question: str, relevant: str) -> None:
    sent: list[JSON] = []

    async def model(body: JSON) -> JSON:
        sent.append(body)
        return completion("red", [{"red": 1.0}])

    for body in (ask(question), ask(question, modint={"probes": ["noop"]})):
        found = (await Guard(GuardConfig(self_ask="auto")).inspect(body, model)).report
        assert (found.verdict.state, found.verdict.reason) == ("skipped", "no_context")
        assert (found.relevant, found.probes) == (relevant, ())
    assert sent == [ask(question)] * 2
    asked = (await Guard().inspect(ask(question, modint={"probes": ["neutral_image"]}), model)).report
    assert [row.name for row in asked.probes] == ["neutral_image"]


@pytest.mark.parametrize("field", [{"relevant": "text"}, {"relevant": "image"}, {"relevant": "both"}])
def test_where_the_client_names_what_ought_to_decide_the_picture_is_taken_out(field: JSON) -> None:
    plan = Guard().plan(ask("And what is it to you?", modint=field))
    assert [view.name for view in plan.views] == ["neutral_image"]
    route = GuardConfig(relevance_rules=(RelevanceRule(Relevant(field["relevant"])),))
    assert [view.name for view in Guard(route).plan(ask("And what is it to you?")).views] == ["neutral_image"]


async def test_two_sure_and_different_sources_are_a_conflict_where_nobody_knows() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    found = await Guard().inspect(ask(f"{LIE}\nAnd what is it to you?"), model)
    assert (found.report.verdict.cause, found.report.relevant) == ("conflict", Relevant.UNKNOWN)


async def where_the_text_is_supposed_to_decide(model: Complete, *policies: Policy) -> Report:
    guard = Guard(GuardConfig(policies=policies))
    plan = replace(guard.plan(ask(f"{LIE}\nAnd what is it to you?")), supposed=Relevant.TEXT)
    assert plan.relevant is Relevant.UNKNOWN
    async with guard.examine(plan, model) as examination:
        completion = await model(examination.body)
        return await examination.report_on(lambda: reply_of(completion))


async def test_an_answer_that_follows_what_very_likely_does_not_matter_is_flagged() -> None:
    model = world(both="red", image="red", text="blue", neither="round", sure=0.98)
    report = await where_the_text_is_supposed_to_decide(model)
    assert (report.verdict.cause, report.relevant, report.relevant_source) == ("image", "unknown", "none")
    assert report.explanation == (
        "The text very likely suffices, by the words of the request, which alone says “blue”, "
        "but the answer follows the picture."
    )


@pytest.mark.parametrize("rung", ["neutralise", "escalate"])
async def test_no_answer_is_replaced_by_what_is_only_supposed_to_decide(rung: str) -> None:
    misled = world(both="red", image="red", text="blue", neither="round", sure=0.98)
    robust = world(both="blue", image="blue", text="blue", neither="round", sure=0.98)

    async def model(body: JSON) -> JSON:
        return await (robust if body["model"] == "robust-lora" else misled)(body)

    report = await where_the_text_is_supposed_to_decide(model, Policy(action=rung))
    assert report.mitigation is not None
    assert (report.mitigation.answer, report.mitigation.rungs[0].outcome) == (None, "unfit")


async def test_an_answer_that_follows_what_is_supposed_to_decide_may_still_be_a_conflict() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    report = await where_the_text_is_supposed_to_decide(model)
    assert (report.verdict.cause, report.relevant) == ("conflict", "unknown")


def test_a_model_that_is_unsure_of_what_matters_leaves_what_is_supposed_to_decide() -> None:
    guard = Guard(GuardConfig(self_ask="auto"))
    plan = replace(guard.plan(ask(f"{LIE}\nAnd what is it to you?")), supposed=Relevant.TEXT)
    unsure, sure = (reply_of(completion(word, [{word: 0.97}])) for word in ("hm", "yes"))
    assert guard.judge.informed(plan, {"self_ask": unsure}).judged_as is Relevant.TEXT
    assert guard.judge.informed(plan, {"self_ask": sure}).judged_as is Relevant.IMAGE


async def test_lettered_answers_are_exact() -> None:
    async def model(body: JSON) -> JSON:
        said = "A" if sees_picture(body) and "blue ball" not in str(body) else "B"
        return completion(said, [{said: 0.995, "A" if said == "B" else "B": 0.005}])

    found = await Guard().inspect(ask(f"A blue ball.\n{QUESTION}\nA. red\nB. blue"), model)
    assert all(row.exact for row in found.report.probes)
    assert found.report.verdict.cause == "text"


async def test_a_late_probe_leaves_the_answer_unscored_and_intact() -> None:
    fast = world(both="blue", image="red", text="blue", neither="round")

    async def model(body: JSON) -> JSON:
        if body.get("max_tokens") == 2 and not sees_picture(body):
            await asyncio.sleep(60)
        return await fast(body)

    found = await Guard(GuardConfig(deadline_s=0.05)).inspect(ask(f"{LIE}\n{QUESTION}"), model)
    said = found.report.to_json()
    assert found.completion["choices"][0]["message"]["content"] == "blue"
    assert (said["verdict"], said["reason"], said["risk"], said["cause"]) == (
        "unscored",
        "timeout",
        None,
        None,
    )
    assert {row["name"]: row["outcome"] for row in said["probes"]} == {
        "no_context": "flipped",
        "neutral_image": "timeout",
        "prior": "timeout",
    }
    assert not others()


async def test_failing_probes_leave_the_answer_unscored() -> None:
    async def model(body: JSON) -> JSON:
        if body.get("max_tokens") == 2:
            raise EndpointError("busy", status=503)
        return completion("blue", [{"blue": 1.0}])

    found = await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert (found.report.verdict.state, found.report.verdict.reason) == ("unscored", "upstream_error")


async def test_an_upstream_without_log_probabilities_leaves_the_answer_unscored() -> None:
    async def model(body: JSON) -> JSON:
        return completion("blue")

    found = await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert (found.report.verdict.state, found.report.verdict.reason) == ("unscored", "no_logprobs")


async def test_a_request_whose_added_log_probabilities_are_refused_is_answered_without_them() -> None:
    seen = []

    async def model(body: JSON) -> JSON:
        seen.append(body)
        if "logprobs" in body:
            raise EndpointError("no log-probabilities here", status=403)
        return completion("blue")

    found = await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert (found.report.verdict.state, found.report.verdict.reason) == ("unscored", "upstream_error")
    assert found.completion["choices"][0]["message"]["content"] == "blue"
    assert seen[-1] == ask(f"{LIE}\n{QUESTION}")
    assert not others()


async def test_log_probabilities_that_the_client_asked_for_itself_are_refused_to_it() -> None:
    seen = []

    async def model(body: JSON) -> JSON:
        seen.append(body)
        raise EndpointError("at most 5", status=400)

    body = ask(QUESTION, logprobs=True, top_logprobs=20)
    with pytest.raises(EndpointError, match="at most 5"):
        await Guard().inspect(body, model)
    assert seen.count(body) == 1


def test_a_plan_asks_for_what_the_upstream_takes() -> None:
    guard = Guard()
    plan = guard.plan(ABOUT_THE_PICTURE, max_top_logprobs=5)
    assert {body["top_logprobs"] for body in (main_body(plan), *(v.body for v in plan.views))} == {5}
    assert guard.plan(ABOUT_THE_PICTURE, max_top_logprobs=50).schedule.top_logprobs == 20
    none = guard.plan(ABOUT_THE_PICTURE, max_top_logprobs=0)
    assert (none.views, main_body(none)) == ((), ask(QUESTION))
    assert guard.judge.report(none, reply("red", red=1.0), {}).verdict.reason == "no_logprobs"


async def test_an_error_of_the_request_itself_is_raised_and_its_probes_are_cancelled() -> None:
    async def model(body: JSON) -> JSON:
        if body.get("max_tokens") == 2:
            await asyncio.sleep(60)
        raise EndpointError("no such model", status=404)

    with pytest.raises(EndpointError, match="no such model"):
        await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert not others()


async def test_cancelling_an_inspection_leaves_no_task() -> None:
    started = []

    async def model(body: JSON) -> JSON:
        started.append(body)
        await asyncio.sleep(60)
        return {}

    running = asyncio.create_task(Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(started) == 4
    assert not others()


def test_the_main_body_asks_for_log_probabilities_and_hides_modint() -> None:
    guard = Guard()
    body = ask(f"{LIE}\n{QUESTION}", modint={"relevant": "image"}, temperature=0.7, x_unknown=1)
    before = copy.deepcopy(body)
    sent = main_body(guard.plan(body))
    assert sent == {
        **{k: v for k, v in before.items() if k != "modint"},
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert body == before
    more = guard.plan(ask(QUESTION, logprobs=True, top_logprobs=30))
    assert main_body(more)["top_logprobs"] == 30


async def test_the_client_gets_back_only_the_log_probabilities_it_asked_for() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    bare = await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert bare.completion["choices"][0]["logprobs"] is None
    two = await Guard().inspect(ask(f"{LIE}\n{QUESTION}", logprobs=True, top_logprobs=2), model)
    (entry,) = two.completion["choices"][0]["logprobs"]["content"]
    assert len(entry["top_logprobs"]) == 2


def test_views_bear_the_same_model_and_are_short_sure_and_whole() -> None:
    body = ask(
        f"{LIE}\n{QUESTION}",
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=99,
        min_tokens=9,
        temperature=1,
        seed=3,
        n=1,
    )
    plan = Guard().plan(body)
    assert [view.name for view in plan.views] == ["no_context", "neutral_image", "prior"]
    for view in plan.views:
        rest = {key: value for key, value in view.body.items() if key != "messages"}
        assert rest == {
            "model": "m",
            "seed": 3,
            "max_tokens": 2,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
        }
    contents = {view.name: view.body["messages"][0]["content"] for view in plan.views}
    assert contents["no_context"] == [image_part(RED), text_part(QUESTION)]
    assert contents["neutral_image"] == [image_part(GREY), text_part(f"{LIE}\n{QUESTION}")]
    assert contents["prior"] == [image_part(GREY), text_part(QUESTION)]


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
TOOL_TURN: list[JSON] = [
    {"role": "user", "content": [image_part(), text_part(QUESTION)]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
    {"role": "tool", "tool_call_id": "1", "content": "red"},
]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (ask(QUESTION, modint={"mode": "off"}), "opted_out"),
        (ask(QUESTION, images=0), "no_image"),
        ({"model": "m", "messages": [{"role": "user", "content": QUESTION}]}, "no_image"),
        (ask(QUESTION, tools=[TOOL]), "tool_calls"),
        (ask(QUESTION, functions=[{"name": "look"}]), "tool_calls"),
        ({"model": "m", "messages": TOOL_TURN}, "tool_calls"),
        (
            ask(QUESTION, response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
            "structured_output",
        ),
        (ask(QUESTION, response_format={"type": "json_object"}), "structured_output"),
        (ask(QUESTION, structured_outputs={"regex": "a|b"}), "structured_output"),
        (ask(QUESTION, n=9), "multiple_choices"),
        (ask(QUESTION, modalities=["text", "audio"], audio={"voice": "a", "format": "wav"}), "audio"),
    ],
)
async def test_requests_that_cannot_be_probed_are_skipped_by_name_and_sent_as_they_are(
    body: JSON, reason: str
) -> None:
    guard, sent = Guard(), []

    async def model(received: JSON) -> JSON:
        sent.append(received)
        return completion("red")

    found = await guard.inspect(body, model)
    assert (found.report.verdict.state, found.report.verdict.reason) == ("skipped", reason)
    assert (found.report.probes, found.report.examined) == ((), ())
    assert sent == [{key: value for key, value in body.items() if key != "modint"}]


@pytest.mark.parametrize(
    ("kind", "reason"), [("input_audio", "audio"), ("video_url", "video"), ("file", "unsupported_part")]
)
def test_requests_with_other_media_are_skipped_by_name(kind: str, reason: str) -> None:
    body = ask(QUESTION)
    body["messages"][0]["content"].append({"type": kind, kind: {}})
    assert Guard().plan(body).skip == reason


@pytest.mark.parametrize(
    "harmless", [{"tools": []}, {"n": None}, {"n": 1}, {"response_format": {"type": "text"}}]
)
def test_harmless_fields_do_not_stop_the_guard(harmless: JSON) -> None:
    assert Guard().plan({**ABOUT_THE_PICTURE, **harmless}).skip is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"tool_calls": [{"id": "1"}]}, "tool_calls"),
        ({"reasoning_content": "Hm.", "content": None}, "reasoning"),
        ({"refusal": "No."}, "refusal"),
    ],
)
async def test_answers_that_cannot_be_judged_are_skipped_by_name(message: JSON, reason: str) -> None:
    async def model(body: JSON) -> JSON:
        return completion("red", [{"red": 1.0}], **message)

    found = await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert (found.report.verdict.state, found.report.verdict.reason) == ("skipped", reason)
    rows = [(row.outcome, row.tokens, row.cached_tokens, row.flip) for row in found.report.probes]
    assert rows == [("undecided", 31, 16, None)] * 3


async def test_an_empty_answer_is_skipped() -> None:
    async def model(body: JSON) -> JSON:
        return completion("", [{"</s>": 1.0}])

    found = await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert found.report.verdict.reason == "empty_answer"


def test_a_request_may_ask_for_more_probes_by_name() -> None:
    guard = Guard(extra_views={"neutral_text": lambda chat: rebuild(chat, context="This line says nothing.")})
    plan = guard.plan(ask(f"{LIE}\n{QUESTION}"), ModintOptions(probes=("noop", "neutral_text", "prior")))
    assert [view.name for view in plan.views] == [
        "no_context",
        "neutral_image",
        "prior",
        "noop",
        "neutral_text",
    ]
    assert plan.views[3].body["messages"] == ask(f"{LIE}\n{QUESTION}")["messages"]


def test_an_unknown_probe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="did you mean 'neutral_image'") as caught:
        Guard().plan(ask(QUESTION, modint={"probes": ["neutral_imag"]}))
    assert caught.value.param == "modint.probes"


def test_too_many_probes_are_refused() -> None:
    guard = Guard(GuardConfig(max_probes=3))
    with pytest.raises(RequestError, match="comes to 4 probes, the limit is 3"):
        guard.plan(ask(f"{LIE}\n{QUESTION}", modint={"probes": ["noop"]}))


def test_a_request_sets_its_deadline() -> None:
    assert Guard().plan(ask(QUESTION)).schedule.deadline_s == 5.0
    assert Guard().plan(ask(QUESTION, modint={"deadline_s": 0.5})).schedule.deadline_s == 0.5
    guard = Guard(GuardConfig(max_deadline_s=7.0))
    assert guard.plan(ask(QUESTION, modint={"deadline_s": 50})).schedule.deadline_s == 7.0


@pytest.mark.parametrize("top", [-1, "5", True, 1.5])
def test_a_wrong_top_logprobs_is_refused(top: Any) -> None:
    with pytest.raises(RequestError) as caught:
        Guard().plan(ask(QUESTION, top_logprobs=top))
    assert caught.value.param == "top_logprobs"


@pytest.mark.parametrize("body", [None, [], "hello", {}])
def test_a_body_that_is_none_is_refused(body: Any) -> None:
    with pytest.raises(RequestError):
        Guard().plan(body)


async def test_of_a_long_answer_only_the_first_word_is_judged_and_the_report_says_so() -> None:
    async def model(body: JSON) -> JSON:
        return completion("blue as the sea", [{"blue": 0.9, "red": 0.1}])

    found = await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert found.report.notes == (NOTE_FIRST_TOKEN,)


async def test_from_when_on_a_model_is_sure_is_what_its_null_measured() -> None:
    model = world(both="blue", image="red", text="blue", neither="green", sure=0.65)
    # The picture alone says "red" at .65 and "blue" at .0875: seven to one.
    for sure, cause in ((None, None), (0.89, None), (0.87, "text")):
        found = await Guard(nulls={"m": Null(sure=sure)}).inspect(ask(f"{LIE}\n{QUESTION}"), model)
        assert found.report.verdict.cause == cause


async def test_picture_and_text_are_in_conflict_only_if_both_are_certain() -> None:
    body = ask(f"{LIE}\nAnd what is it to you?", modint={"relevant": "auto"})
    for sure, cause in ((0.98, None), (0.991, "conflict")):
        model = world(both="red", image="red", text="blue", neither="green", sure=sure)
        found = await Guard(nulls={"m": Null(sure=0.5)}).inspect(body, model)
        assert found.report.verdict.cause == cause


async def test_thresholds_decide_what_is_flagged() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    never = GuardConfig(thresholds=Thresholds(sure=1.0))
    found = await Guard(never).inspect(ask(f"{LIE}\n{QUESTION}"), model)
    assert found.report.verdict.state is State.PASS


def judged(given: str, own: Reply, **cells: Reply | Failure) -> Report:
    guard = Guard()
    plan = guard.plan(ask(f"{LIE}\n{QUESTION}"))
    return guard.judge.report_on_given(plan, given_reply(given), own, cells)


BELIEVES: dict[str, Reply | Failure] = {
    "no_context": reply("red", red=0.991, blue=0.008),
    "neutral_image": reply("blue", blue=0.9, green=0.05),
    "prior": reply("round", round=0.6, blue=0.3),
}


def test_a_given_answer_is_judged_at_its_own_first_word() -> None:
    own = reply("blue", blue=0.95, red=0.04)
    assert judged("**Blue**", own, **BELIEVES).verdict.cause == "text"
    said = judged("red like fire", own, **BELIEVES)
    assert (said.verdict.state, said.notes) == ("pass", (NOTE_FIRST_TOKEN, NOTE_NOT_PREFERRED))
    assert said.probes[0].delta_logprob == pytest.approx(math.log(0.04 / 0.991))


def test_a_given_word_that_only_a_view_lists_is_at_most_as_likely_as_the_models_tail() -> None:
    said = judged("blue", reply("red", red=0.7, green=0.29), **BELIEVES)
    assert (said.verdict.state, said.notes) == ("pass", (NOTE_NOT_PREFERRED,))  # the request prefers red
    assert said.probes[1].delta_logprob == pytest.approx(math.log(0.01 / 0.9))


def test_a_given_word_that_nobody_lists_is_unscored_and_not_compared() -> None:
    own = reply("blue", blue=0.95, red=0.04)
    said = judged("blueberry", own, **BELIEVES)
    assert (said.verdict.state, said.verdict.reason, said.notes) == (
        "unscored",
        "incomplete",
        (NOTE_UNLISTED,),
    )
    assert {row.divergence for row in said.probes} == {None}
    late = Failure(ProbeOutcome.TIMEOUT, "timeout")
    assert judged("mauve", own, **{**BELIEVES, "prior": late}).verdict.reason == "timeout"


def test_a_given_answer_cannot_be_judged_without_log_probabilities() -> None:
    own = Reply("", "length", None, None, skip="empty_answer")
    assert judged("blue", own, **BELIEVES).verdict.reason == "no_logprobs"
    assert judged("blue", replace(own, skip="reasoning"), **BELIEVES).verdict.reason == "reasoning"


def test_judging_is_pure() -> None:
    guard = Guard()
    plan = guard.plan(ABOUT_THE_PICTURE)
    answer = Reply("red", "stop", "red", {"red": 0.0})
    assert guard.judge.report(plan, answer, {}) == guard.judge.report(plan, answer, {})
    assert guard.judge.report(plan, answer, {}).verdict.reason == "incomplete"


async def test_the_report_is_read_back_typed() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    read = verdict((await Guard().inspect(ask(f"{LIE}\n{QUESTION}"), model)).completion)
    assert read is not None
    assert (read.verdict, read.cause, read.answers.image_only, read.probes[0].flip) == (
        "flagged",
        "text",
        "red",
        True,
    )


async def test_a_flag_is_withdrawn_where_the_answer_also_flips_under_a_harmless_change() -> None:
    async def model(body: JSON) -> JSON:
        in_order = f"{LIE} It rolls." in str(body)
        said = "blue" if in_order else "green" if LIE in str(body) else "red"
        return completion(said, [dict.fromkeys(("red", "blue", "green"), 0.002) | {said: 0.996}])

    body = ask(f"{LIE} It rolls.\n{QUESTION}")
    assert (await Guard().inspect(body, model)).report.verdict.cause == "text"
    found = await Guard().inspect({**body, "modint": {"probes": ["benign"]}}, model)
    assert (found.report.verdict.state, found.report.verdict.cause) == ("pass", None)
    assert any("(benign)" in note for note in found.report.notes)


IGNORED = world(both="red", image="red", text="green", neither="green")  # the caption changes nothing


@pytest.mark.parametrize("source", ["request", "route"])
async def test_a_needed_caption_without_influence_is_flagged_as_neglect(source: str) -> None:
    rules = (RelevanceRule(Relevant.BOTH),) if source == "route" else ()
    field = {"relevant": "both"} if source == "request" else {}
    guard = Guard(GuardConfig(relevance_rules=rules))
    said = (
        await guard.inspect(ask(f"{LIE}\nAnd what is it to you?", modint=field), IGNORED)
    ).report.to_json()
    assert (said["verdict"], said["cause"], said["relevant_source"]) == ("flagged", "neglect", source)
    assert said["neglect"] == pytest.approx(0.0, abs=1e-9) and said["risk"] is None


async def test_neglect_is_only_reported_where_nobody_named_what_is_needed() -> None:
    said = (
        await Guard().inspect(ask(LIE, "Does the picture match the description?"), IGNORED)
    ).report.to_json()
    assert (said["verdict"], said["relevant"], said["relevant_source"]) == ("pass", "both", "rules")
    assert said["neglect"] == pytest.approx(0.0, abs=1e-9)


async def test_a_needed_caption_that_decides_and_a_lie_that_is_ignored_are_no_neglect() -> None:
    both = ask(f"{LIE}\nAnd what is it to you?", modint={"relevant": "both"})
    needed = world(both="blue", image="red", text="green", neither="green")
    told = (await Guard().inspect(both, needed)).report
    # Only caption and picture together say blue: both lead by log(0.99996 / 0.00001), half of it twice.
    assert (told.verdict.state, told.verdict.neglect) == ("pass", pytest.approx(-math.log(99996), abs=1e-3))
    picture = ask(f"{LIE}\n{QUESTION}", modint={"relevant": "image"})
    ignored = (await Guard().inspect(picture, IGNORED)).report
    assert ignored.verdict.state == "pass" and (ignored.verdict.neglect or 0.0) < -5
    misled = world(both="blue", image="red", text="blue", neither="round")
    followed = (await Guard().inspect(picture, misled)).report
    assert followed.verdict.cause == "text"  # interference comes first


async def test_a_named_picture_that_changes_nothing_is_neglected_without_a_context_too() -> None:
    blind = world(both="red", image="red", text="red", neither="red", sure=0.7)
    found = (await Guard().inspect(ABOUT_THE_PICTURE, blind)).report
    assert (found.verdict.cause, found.verdict.neglect) == ("neglect", pytest.approx(0.0, abs=1e-9))
    seeing = world(both="red", image="red", text="green", neither="green", sure=0.7)
    assert (await Guard().inspect(ABOUT_THE_PICTURE, seeing)).report.verdict.reason == "no_context"


async def test_a_policy_only_notes_an_answer_that_neglects_what_is_needed() -> None:
    guard = Guard(GuardConfig(policies=(Policy("abstain", early_stop=False),)))
    found = (
        await guard.inspect(ask(f"{LIE}\nAnd what is it to you?", modint={"relevant": "both"}), IGNORED)
    ).report
    assert (found.verdict.cause, found.action, found.mitigation) == ("neglect", "annotate", None)


def test_a_probe_that_does_not_fit_is_left_out_and_said() -> None:
    plan = Guard().plan(ask(f"{LIE}\n{QUESTION}"), ModintOptions(probes=("permuted_options",)))
    assert [view.name for view in plan.views] == ["no_context", "neutral_image", "prior"]
    assert any("permuted_options does not fit" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("word", "relevant", "verdict"),
    [("yes", Relevant.IMAGE, "flagged"), ("no", Relevant.TEXT, "pass"), ("hm", Relevant.UNKNOWN, "flagged")],
)
async def test_the_model_itself_is_asked_which_modality_matters_where_nobody_says(
    word: str, relevant: Relevant, verdict: str
) -> None:
    fast, asked = world(both="blue", image="red", text="blue", neither="round"), []

    async def model(body: JSON) -> JSON:
        if "Does answering need the picture?" in str(body):
            asked.append(body)
            return completion(word, [{word: 0.97}])
        return await fast(body)

    guard = Guard(GuardConfig(self_ask="auto"))
    found = (await guard.inspect(ask(f"{LIE}\nAnd what is it to you?"), model)).report
    assert (found.relevant, found.verdict.state) == (relevant, verdict)
    assert found.relevant_source == ("self_ask" if relevant is not Relevant.UNKNOWN else "none")
    assert (
        asked[0]["messages"][0]["content"][-1]["text"]
        == f"{LIE}\nAnd what is it to you?\nDoes answering need the picture?"
    )
    (row,) = (row for row in found.probes if row.name == "self_ask")
    assert (row.outcome, row.answer, row.tokens) == (ProbeOutcome.UNDECIDED, word, 31)
    assert len(asked) == 1
    await guard.inspect(ask(f"{LIE}\n{QUESTION}"), model)  # the rules know
    assert len(asked) == 1


def speaks(both: str, image: str, text: str, again: str | None = None) -> tuple[list[JSON], Complete]:
    """The world of `world`, without log-probabilities; asked again unchanged it may say something else."""
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        seen, read = sees_picture(body), LIE in str(body)
        whole = both if "max_tokens" not in body else again or both
        return completion(whole if seen and read else image if seen else text if read else "green")

    return calls, complete


async def inspected(model: Complete, text: str = f"{LIE}\n{QUESTION}") -> Report:
    guard = Guard(GuardConfig(regenerate=True))
    plan = guard.plan(ask(text), max_top_logprobs=0)
    replies = await probe(plan, guard.judge, model)
    return guard.judge.report(plan, reply_of(await model(main_body(plan))), replies)


async def test_without_log_probabilities_a_short_answer_is_generated_again_and_the_method_named() -> None:
    calls, model = speaks("Blue.", "red", "blue")
    said = (await inspected(model)).to_json()
    assert (said["verdict"], said["cause"], said["method"]) == ("flagged", "text", "regenerated")
    assert (said["risk"], said["influence"]["text"], said["calibrated"]) == (None, None, False)
    assert {row["name"]: row["outcome"] for row in said["probes"]} == {
        "no_context": "flipped",
        "neutral_image": "consistent",
        "prior": "flipped",
        "noop": "consistent",
    }
    assert all(row["divergence"] is None for row in said["probes"])
    assert all("logprobs" not in body for body in calls)
    assert [body["max_tokens"] for body in calls if "max_tokens" in body] == [32] * 4


async def test_an_answer_that_moves_by_itself_is_not_flagged_by_its_words() -> None:
    _, model = speaks("blue", "red", "blue", again="violet")
    found = await inspected(model)
    assert (found.verdict.state, found.verdict.cause) == ("pass", None)
    assert any("(noop)" in note for note in found.notes)


async def test_a_flip_by_words_is_unscored_where_the_unchanged_request_got_no_answer() -> None:
    _, steady = speaks("blue", "red", "blue")

    async def model(body: JSON) -> JSON:
        if "max_tokens" in body and sees_picture(body) and LIE in str(body):
            raise EndpointError("busy", status=503)
        return await steady(body)

    found = await inspected(model)
    assert (found.verdict.state, found.verdict.reason) == ("unscored", "upstream_error")
    assert not any("(noop)" in note for note in found.notes)


async def test_a_longer_answer_is_not_compared_by_its_words() -> None:
    _, model = speaks("It is a big round blue ball that rolls", "red", "blue")
    found = await inspected(model)
    assert (found.verdict.state, found.verdict.reason, found.method) == (
        "unscored",
        "no_logprobs",
        "regenerated",
    )


async def test_moved_options_are_read_by_their_texts_where_answers_are_compared_by_words() -> None:
    async def loyal(body: JSON) -> JSON:
        return completion("A" if "A. blue" in str(body) else "B")

    async def stubborn(body: JSON) -> JSON:
        return completion("B")

    guard = Guard(GuardConfig(regenerate=True))
    body = ask(f"{LIE}\n{QUESTION}\nA. red\nB. blue", modint={"probes": ["permuted_options"]})
    plan = guard.plan(body, max_top_logprobs=0)
    flips = []
    for model in (loyal, stubborn):
        found = guard.judge.report(
            plan, reply_of(await model(plan.body)), await probe(plan, guard.judge, model)
        )
        flips += [row.flip for row in found.probes if row.name == "permuted_options"]
    assert flips == [False, True]
    assert any("(permuted_options)" in note for note in found.notes)


async def test_an_option_is_the_same_however_it_is_written() -> None:
    _, model = speaks("(A)", "A. red", "a")
    found = await inspected(model, f"{LIE}\n{QUESTION}\nA. red\nB. blue")
    assert [row.flip for row in found.probes][:2] == [False, False]
