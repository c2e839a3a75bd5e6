"""An early stop: what the first probe settles is asked no more, and no flag is lost by it."""

import asyncio

import pytest

from modint_guard import Guard, GuardConfig, Thresholds
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.fit_calibration import calibrate, clear_threshold, expected_probes
from modint_guard.judge import NOTE_BY_EACH, NOTE_BY_FIRST
from modint_guard.judging.calibration import Fitted
from modint_guard.judging.verdict import settles
from modint_guard.mitigation.policy import Policy
from modint_guard.types import JSON, Complete, Relevant, Score
from tests.core.fakes import ask, reads, sees_picture, world
from tests.core.test_calibration import answers, made
from tests.core.test_verdict import FLIP, SAME, SURE, cell

LIE = "The ball is blue."
QUESTION = "What colour is the ball in the picture?"
EARLY = (
    made()
    .fitted["image"]
    .model_copy(  # a risk of 0.27 if nothing moves, of 0.95 if all does
        update={"flag_at": 0.65, "clear_below": 0.3}
    )
)
CALIBRATED = made(fitted={"image": EARLY, "text": EARLY})
HALF = made(fitted={"image": EARLY.model_copy(update={"flag_at": 0.97})})  # such an answer is in between


def early(config: GuardConfig | None = None) -> Guard:
    return Guard(config, calibrations=[CALIBRATED])


BODY = ask(f"{LIE}\n{QUESTION}")
NAMED = {**BODY, "modint": {"relevant": "image"}}


def counted(model: Complete) -> tuple[list[JSON], Complete]:
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        return await model(body)

    return calls, complete


async def test_an_answer_that_hardly_moves_takes_one_probe() -> None:
    calls, model = counted(world(both="red", image="red", text="blue", neither="green"))
    found = (await early().inspect(BODY, model)).report
    assert (found.verdict.state, found.examined) == ("pass", ("text",))
    assert found.verdict.risk is not None and found.verdict.risk < 0.3
    assert [row.name for row in found.probes] == ["no_context"]
    assert found.notes == (NOTE_BY_FIRST,)
    assert len(calls) == 2


async def test_an_answer_between_what_passes_and_what_is_flagged_is_asked_every_cell() -> None:
    calls, model = counted(world(both="blue", image="red", text="blue", neither="green"))
    found = (await Guard(calibrations=[HALF]).inspect(BODY, model)).report
    assert found.verdict.state == "pass" and 0.9 < (found.verdict.risk or 0) < 0.97
    assert [row.name for row in found.probes] == ["no_context", "neutral_image", "prior"]
    assert found.notes == () and len(calls) == 4


async def test_where_text_ought_to_decide_the_picture_is_taken_out_first() -> None:
    calls, model = counted(world(both="blue", image="red", text="blue", neither="green"))
    found = (await early().inspect({**BODY, "modint": {"relevant": "text"}}, model)).report
    assert [row.name for row in found.probes] == ["neutral_image"]
    assert (found.verdict.state, found.examined, len(calls)) == ("pass", ("image",), 2)


async def test_a_risk_that_flags_alone_needs_no_other_cell() -> None:
    calls, model = counted(world(both="blue", image="red", text="blue", neither="green"))
    found = (await early().inspect(BODY, model)).report
    assert (found.verdict.state, found.verdict.cause) == ("flagged", "text")
    assert [row.name for row in found.probes] == ["no_context"]
    assert found.notes == (NOTE_BY_FIRST,) and len(calls) == 2


async def test_a_flag_that_is_to_be_mended_has_what_each_modality_alone_says() -> None:
    _, model = counted(world(both="blue", image="red", text="blue", neither="green"))
    found = (await early(MENDS).inspect(NAMED, model)).report
    assert [row.name for row in found.probes] == ["no_context", "neutral_image"]
    assert (found.action, found.notes) == ("neutralise", (NOTE_BY_EACH,))
    whole = GuardConfig(policies=(Policy(action="neutralise", early_stop=False),))
    asked = (await Guard(whole).inspect(BODY, model)).report
    assert [row.name for row in asked.probes] == ["no_context", "neutral_image", "prior"]


async def test_where_both_decide_an_answer_that_the_prior_does_not_give_passes_on_it() -> None:
    calls, model = counted(world(both="red", image="red", text="blue", neither="green"))
    body = ask(f"{LIE}\nIs it so?", modint={"relevant": "both"})
    found = (await early().inspect(body, model)).report
    assert [row.name for row in found.probes] == ["prior"]
    assert (found.verdict.state, found.verdict.risk, len(calls)) == ("pass", None, 2)


async def test_where_both_decide_an_answer_of_the_prior_is_asked_every_cell() -> None:
    calls, model = counted(world(both="red", image="red", text="red", neither="red"))
    body = ask(f"{LIE}\nIs it so?", modint={"relevant": "both"})
    found = (await early().inspect(body, model)).report
    assert (found.verdict.cause, len(calls)) == ("prior", 4)


async def test_where_nobody_knows_what_is_irrelevant_every_cell_is_asked_at_once() -> None:
    calls, model = counted(world(both="red", image="red", text="blue", neither="green"))
    await early().inspect(ask(f"{LIE}\nAnd what is it to you?", modint={"relevant": "auto"}), model)
    assert len(calls) == 4


async def test_a_cell_that_the_request_names_is_not_saved() -> None:
    _, model = counted(world(both="red", image="red", text="blue", neither="green"))
    found = (await early().inspect({**BODY, "modint": {"probes": ["prior", "noop"]}}, model)).report
    assert {row.name for row in found.probes} == {"no_context", "prior", "noop", "neutral_image"}


async def test_a_first_probe_that_fails_clears_nothing() -> None:
    steady = world(both="red", image="red", text="blue", neither="green")

    async def model(body: JSON) -> JSON:
        if sees_picture(body) and not reads(body, "blue."):
            raise EndpointError("busy", status=503)
        return await steady(body)

    found = (await early().inspect(BODY, model)).report
    assert (found.verdict.state, found.verdict.reason) == ("unscored", "upstream_error")
    assert len(found.probes) == 3


async def test_cancelling_between_the_stages_leaves_no_task() -> None:
    fast = world(both="blue", image="red", text="blue", neither="green")
    late = asyncio.Event()

    async def model(body: JSON) -> JSON:
        if body.get("max_tokens") == 2 and not sees_picture(body):
            late.set()
            await asyncio.sleep(60)
        return await fast(body)

    running = asyncio.create_task(Guard(calibrations=[HALF]).inspect(BODY, model))
    async with asyncio.timeout(10):
        await late.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == {asyncio.current_task()}


def settled(
    score: Score, relevant: Relevant, fitted: Fitted | None = None, *, corrects: bool = False
) -> bool:
    return settles(score, relevant, Thresholds(), fitted, corrects=corrects)


def test_without_a_calibration_the_first_cell_settles_what_it_does_not_contradict() -> None:
    same, flip = Score({"no_context": cell(SAME)}, {}), Score({"no_context": cell(FLIP)}, {})
    assert settled(same, Relevant.IMAGE) and not settled(flip, Relevant.IMAGE)
    assert not settled(Score({"no_context": cell(SAME)}, {"prior": "timeout"}), Relevant.IMAGE)
    assert not settled(same, Relevant.TEXT)  # it is not the first one there
    assert settled(Score({"neutral_image": cell(SAME)}, {}), Relevant.TEXT)
    assert not settled(same, Relevant.UNKNOWN)
    each = Score({"no_context": cell(FLIP), "neutral_image": cell(SAME)}, {})
    assert not settled(each, Relevant.IMAGE)  # its influence is not known without the prior


def test_a_calibration_settles_what_it_clears_and_what_it_flags() -> None:
    same, flip = Score({"no_context": cell(SAME)}, {}), Score({"no_context": cell(FLIP)}, {})
    assert settled(same, Relevant.IMAGE, EARLY) and settled(flip, Relevant.IMAGE, EARLY)
    never = EARLY.model_copy(update={"clear_below": 0.0})
    assert not settled(same, Relevant.IMAGE, never) and settled(flip, Relevant.IMAGE, never)
    assert not settled(flip, Relevant.IMAGE, HALF.fitted["image"])


def test_where_a_policy_mends_the_first_cell_passes_and_flags_with_what_each_alone_says() -> None:
    moved = {"no_context": cell(FLIP)}
    assert not settled(Score(moved, {}), Relevant.IMAGE, EARLY, corrects=True)
    assert settled(Score(moved, {}), Relevant.IMAGE, HALF.fitted["image"], corrects=True)  # it passes
    assert settled(Score({"no_context": cell(SAME)}, {}), Relevant.IMAGE, EARLY, corrects=True)
    each = Score({**moved, "neutral_image": cell(FLIP)}, {})
    assert settled(each, Relevant.IMAGE, EARLY, corrects=True)  # by the risk alone


def test_where_both_decide_the_prior_alone_passes_what_it_does_not_give() -> None:
    assert settled(Score({"prior": cell(FLIP)}, {}), Relevant.BOTH)
    assert settled(Score({"prior": cell(SAME)}, {}), Relevant.BOTH)  # it is not sure
    assert not settled(Score({"prior": cell(SURE)}, {}), Relevant.BOTH)
    assert not settled(Score({"no_context": cell(FLIP)}, {}), Relevant.BOTH)


# -- where a policy mends --------------------------------------------------------------------------

MENDS = GuardConfig(policies=(Policy("neutralise"),))


async def test_a_policy_that_mends_asks_one_probe_of_what_passes_and_every_cell_of_what_is_flagged() -> None:
    calls, steady = counted(world(both="red", image="red", text="blue", neither="green"))
    passed = (await Guard(MENDS).inspect(BODY, steady)).report
    assert (passed.verdict.state, passed.notes, len(calls)) == ("pass", (NOTE_BY_FIRST,), 2)
    calls, misled = counted(world(both="blue", image="red", text="blue", neither="green"))
    flagged = (await Guard(MENDS).inspect(NAMED, misled)).report
    assert (flagged.verdict.cause, flagged.action, flagged.notes) == ("text", "neutralise", ())
    assert [row.name for row in flagged.probes] == ["no_context", "neutral_image", "prior"]
    assert (len(calls), flagged.image_only, flagged.text_only) == (4, "red", "blue")
    whole = (await Guard().inspect(NAMED, misled)).report
    assert whole.verdict == flagged.verdict


async def test_where_the_first_two_contradict_the_answer_the_prior_is_asked_as_well() -> None:
    calls, model = counted(world(both="blue", image="red", text="green", neither="green"))
    found = (await Guard(MENDS).inspect(BODY, model)).report
    assert (found.verdict.cause, found.notes, len(calls)) == ("text", (), 4)


async def test_where_both_decide_what_neither_would_say_clears_or_the_others_are_asked() -> None:
    body = ask(f"{LIE}\nIs it so?", modint={"relevant": "both"})
    calls, model = counted(world(both="red", image="red", text="blue", neither="green"))
    found = (await Guard(MENDS).inspect(body, model)).report
    assert (found.verdict.state, [row.name for row in found.probes]) == ("pass", ["prior"])
    assert (found.notes, len(calls)) == ((NOTE_BY_FIRST,), 2)
    calls, model = counted(world(both="red", image="red", text="red", neither="red", lie="blue."))
    found = (await Guard(MENDS).inspect(body, model)).report
    assert (found.verdict.cause, len(calls)) == ("prior", 4)


async def test_a_picture_alone_is_asked_about_once_where_a_policy_mends() -> None:
    body = ask(QUESTION, modint={"relevant": "image"})
    calls, model = counted(world(both="red", image="red", text="blue", neither="green"))
    found = (await Guard(MENDS).inspect(body, model)).report
    assert (found.verdict.state, found.verdict.reason, len(calls)) == ("skipped", "no_context", 1)
    await Guard().inspect(body, model)
    assert len(calls) == 3
    asked = (await Guard(MENDS).inspect({**body, "modint": {"probes": ["benign"]}}, model)).report
    assert {row.name for row in asked.probes} == {"neutral_image", "benign"}


async def test_without_its_early_stop_a_policy_asks_every_cell() -> None:
    calls, model = counted(world(both="red", image="red", text="blue", neither="green"))
    whole = GuardConfig(policies=(Policy("neutralise", early_stop=False),))
    found = (await Guard(whole).inspect(BODY, model)).report
    assert (len(calls), found.influence_image is None) == (4, False)


async def test_the_adapters_answer_is_probed_as_sparingly() -> None:
    honest = world(both="red", image="red", text="red", neither="green")
    misled = world(both="blue", image="red", text="blue", neither="green")

    async def model(body: JSON) -> JSON:
        return await (honest if body["model"] == "robust-lora" else misled)(body)

    calls, both = counted(model)
    found = await Guard(GuardConfig(policies=(Policy("escalate"),))).inspect(NAMED, both)
    assert (found.report.action, len(calls)) == ("escalate", 4 + 2)


def test_a_budget_of_probes_by_hand() -> None:
    risks = [0.1, 0.2, 0.3, 0.8]
    assert expected_probes(risks, 0.0, 0.7) == 3.0
    assert expected_probes(risks, 0.3, 0.7) == 1 + 2 * 1 / 4  # 0.3 alone goes on
    assert clear_threshold(risks, 0.7, 1.5) == 0.3
    assert clear_threshold(risks, 0.7, 2.0) == 0.2
    assert clear_threshold(risks, 0.7, 1.0) == 0.7  # clears all that is not flagged
    assert clear_threshold(risks, 0.7, 3.0) == 0.1
    with pytest.raises(ConfigError, match=r"0.9 probes a request cannot be reached"):
        clear_threshold(risks, 0.7, 0.9)


def test_a_calibration_keeps_its_budget_and_never_clears_what_it_flags() -> None:
    plain, saving = calibrate(answers(600)), calibrate(answers(600), probes=1.2)
    assert plain.clear_below == 0.0 and plain.expected_probes == 3.0
    assert 1.1 < saving.expected_probes <= 1.2 and saving.clear_below <= saving.flag_at
    assert (saving.flag_at, saving.promises) == (plain.flag_at, plain.promises)
