"""The ladder: which rungs are tried for which flagged answer, what each does, and what it may cost."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from modint_guard import Guard, GuardConfig, Thresholds
from modint_guard.chat.reply import reply_of, token_text
from modint_guard.errors import EndpointError, EndpointTimeout
from modint_guard.mitigation.policy import FORMS, TABLE, Form, Policy, rungs_of
from modint_guard.mitigation.rungs import BY_NAME, confidence, debiased, label_of
from modint_guard.report import Inspection
from modint_guard.schema import json_schema
from modint_guard.types import (
    ACTIONS,
    JSON,
    RUNGS,
    TAKEN_ACTIONS,
    Cause,
    Complete,
    Position,
    Relevant,
    Reply,
    RungOutcome,
)
from tests.core.fakes import ask, completion, reads, sees_picture, world

LIE = "The ball is blue."
QUESTION = "What colour is the ball in the picture?"
LETTERED = "What colour is the ball in the picture?\nA. red\nB. blue\nC. green"
ROBUST = "robust-lora"
MISLED = world(both="blue", image="red", text="blue", neither="round")


EASILY_SURE = Thresholds(sure=0.5)  # of another answer: what is done about a flag is the subject here


def guard(**policy: Any) -> Guard:
    return Guard(GuardConfig(policies=(Policy(**policy),), thresholds=EASILY_SURE))


def asked(text: str = f"{LIE}\n{QUESTION}", **modint: Any) -> JSON:
    return ask(text, max_tokens=8, modint={"relevant": "image", **modint})


def said(found: Inspection) -> str:
    return str(found.completion["choices"][0]["message"]["content"])


def outcomes(found: Inspection) -> list[tuple[str, str]]:
    assert found.report.mitigation is not None
    return [(each.rung, each.outcome.value) for each in found.report.mitigation.rungs]


def with_adapter(adapter: Complete, base: Complete = MISLED) -> tuple[Complete, list[JSON]]:
    """A server of two models, and the bodies it was sent."""
    seen: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        seen.append(body)
        return await (adapter if body["model"] == ROBUST else base)(body)

    return complete, seen


# -- policies --------------------------------------------------------------------------------------


async def test_by_default_a_flagged_answer_is_served_as_it_is() -> None:
    found = await Guard().inspect(asked(), MISLED)
    assert (said(found), found.report.action, found.report.mitigation) == ("blue", "annotate", None)


async def test_the_relevant_modalitys_own_answer_takes_the_place_of_a_flagged_one_and_says_so() -> None:
    found = await guard(action="neutralise").inspect(asked(), MISLED)
    assert said(found) == "red"
    assert found.completion["choices"][0]["logprobs"] is None
    shown = found.completion["modint"]
    assert (shown["verdict"], shown["action"]) == ("flagged", "neutralise")
    told = shown["mitigation"]
    assert (told["asked"], told["original"], told["answer"]) == ("neutralise", "blue", "red")
    assert (told["tokens"], told["correction"]) == (0, False)
    assert [(row["rung"], row["outcome"], row["tokens"]) for row in told["rungs"]] == [
        ("neutralise", "mended", 0)
    ]
    jsonschema.validate(shown, json_schema())


async def test_the_requests_own_action_wins_over_the_policy() -> None:
    found = await guard(action="neutralise").inspect(asked(action="annotate"), MISLED)
    assert (said(found), found.report.mitigation) == ("blue", None)
    found = await Guard().inspect(asked(action="ladder"), MISLED)
    assert (said(found), found.report.action) == ("red", "neutralise")


async def test_the_first_policy_that_fits_model_and_question_decides() -> None:
    policies = (
        Policy("abstain", model="other-*"),
        Policy("neutralise", question="COLOUR"),
        Policy("abstain"),
    )
    found = await Guard(GuardConfig(policies=policies)).inspect(asked(), MISLED)
    assert found.report.action == "neutralise"


async def test_an_answer_that_passes_is_left_alone_whatever_the_policy() -> None:
    honest = world(both="red", image="red", text="red", neither="round", lie="red.")
    found = await guard(action="ladder").inspect(asked(f"The ball is red.\n{QUESTION}"), honest)
    assert (found.report.verdict.state, found.report.mitigation) == ("pass", None)


async def test_no_rung_at_all_leaves_a_note_of_nothing_tried() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    found = await guard(action="ladder").inspect(
        asked(f"{LIE}\nAnd what is it to you?", relevant="auto"), model
    )
    assert (found.report.verdict.cause, found.report.relevant) == ("conflict", "unknown")
    assert (said(found), outcomes(found), found.report.action) == ("blue", [], "annotate")


# -- the table -------------------------------------------------------------------------------------


def test_every_flag_that_the_policy_can_raise_has_a_row_of_every_form() -> None:
    raised = {(Cause.TEXT, Relevant.IMAGE), (Cause.IMAGE, Relevant.TEXT), (Cause.CONFLICT, Relevant.UNKNOWN)}
    raised |= {(Cause.PRIOR, relevant) for relevant in (Relevant.IMAGE, Relevant.TEXT, Relevant.BOTH)}
    assert set(TABLE) == raised
    assert all(set(row) == set(FORMS) for row in TABLE.values())
    assert {rung for row in TABLE.values() for rungs in row.values() for rung in rungs} <= set(RUNGS)
    assert (
        set(BY_NAME)
        == set(RUNGS)
        == set(TAKEN_ACTIONS) - {"annotate"}
        == set(ACTIONS) - {"annotate", "ladder"}
    )


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_neutralised_where_nobody_knows_what_is_relevant(form: Any) -> None:
    for (_, relevant), row in TABLE.items():
        assert relevant is not Relevant.UNKNOWN or "neutralise" not in row[form]


@pytest.mark.parametrize("relevant", ["auto", "both"])
@pytest.mark.parametrize("rung", ["neutralise", "debias", "rerank"])
async def test_a_rung_that_takes_a_modality_away_is_unfit_unless_one_is_known_to_be_irrelevant(
    relevant: str, rung: str
) -> None:
    same = "red" if relevant == "both" else "blue"
    model = world(both=same, image="red", text=same, neither="red")
    found = await guard(action=rung).inspect(
        asked(f"{LIE}\nAnd what is it to you?", relevant=relevant), model
    )
    assert found.report.verdict.state == "flagged"
    assert (outcomes(found), said(found)) == ([(rung, "unfit")], same)


def test_a_policy_with_one_action_has_one_rung_and_the_ladder_its_own_order() -> None:
    where: tuple[Cause, Relevant, Form] = (Cause.TEXT, Relevant.IMAGE, "word")
    assert rungs_of(Policy("debias"), *where) == ("debias",)
    assert rungs_of(Policy("ladder"), *where) == TABLE[Cause.TEXT, Relevant.IMAGE]["word"]
    assert rungs_of(Policy("ladder", order=("escalate", "abstain")), *where) == ("escalate", "abstain")
    assert rungs_of(Policy(), *where) == rungs_of(Policy("ladder"), None, Relevant.IMAGE, "word") == ()


@pytest.mark.parametrize("rung", ["neutralise", "escalate", "debias"])
async def test_a_guess_at_what_is_relevant_gives_no_other_answer_unless_it_is_trusted(rung: str) -> None:
    """The question speaks of the picture, and the caption may be needed all the same."""
    honest = world(both="red", image="red", text="red", neither="round")
    complete, seen = with_adapter(honest)
    found = await guard(action=rung).inspect(asked(relevant="auto"), complete)
    assert (found.report.relevant, found.report.relevant_source) == ("image", "rules")
    assert (said(found), outcomes(found), len(seen)) == ("blue", [(rung, "unfit")], 4)
    named = await guard(action="neutralise", trust_guess=True).inspect(asked(relevant="auto"), complete)
    assert said(named) == "red"


async def test_abstaining_needs_no_trust_in_a_guess() -> None:
    found = await guard(action="ladder", otherwise="abstain").inspect(asked(relevant="auto"), MISLED)
    assert outcomes(found)[-1] == ("abstain", "abstained")


# -- neutralise ------------------------------------------------------------------------------------


async def test_a_view_that_is_not_sure_of_its_answer_does_not_replace_one() -> None:
    model = world(both="blue", image="red", text="blue", neither="round", sure=0.6)
    sure = {"accept_at": 0.7, "action": "neutralise"}
    found = await guard(**sure).inspect(asked(), model)
    assert (outcomes(found), said(found)) == ([("neutralise", "unsure")], "blue")
    found = await guard(**{**sure, "accept_at": 0.6}).inspect(asked(), model)
    assert said(found) == "red"


async def test_a_longer_answer_of_the_relevant_modality_is_generated_at_the_clients_own_length() -> None:
    seen: list[JSON] = []

    async def talkative(body: JSON) -> JSON:
        seen.append(body)
        colour = "blue" if reads(body, "blue.") or not sees_picture(body) else "red"
        first = {colour: 0.99996, "grey": 0.00001}
        if body["max_tokens"] > 2:
            return completion(f"{colour} it is", [first, {" it": 0.9}, {" is": 0.9}])
        whole = completion(f"{colour} it", [first, {" it": 0.9}])
        whole["choices"][0]["finish_reason"] = "length"
        return whole

    body = {**asked(), "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.3}
    found = await guard(action="neutralise", accept_at=0.5).inspect(body, talkative)
    assert (said(found), len(seen)) == ("red it is", 5)
    assert (seen[-1]["max_tokens"], seen[-1]["temperature"]) == (8, 0.3)
    assert not {"stream", "stream_options", "modint"} & set(seen[-1])
    assert not reads(seen[-1], LIE) and sees_picture(seen[-1])
    mitigation = found.report.mitigation
    assert mitigation is not None and (mitigation.tokens, mitigation.rungs[0].cached_tokens) == (31, 16)


def test_an_answers_sureness_is_the_geometric_mean_of_its_tokens() -> None:
    positions = tuple(
        Position(token, math.log(p), {token: math.log(p)}) for token, p in (("a", 0.5), ("b", 0.125))
    )
    answer = Reply("ab", "stop", "a", {}, positions=positions)
    assert confidence(answer) == pytest.approx(0.25)
    assert confidence(replace(answer, positions=())) == 0.0


# -- escalate --------------------------------------------------------------------------------------


async def test_the_robust_adapters_answer_is_served_once_its_own_probes_pass() -> None:
    honest = world(both="red", image="red", text="red", neither="round")
    complete, seen = with_adapter(honest)
    found = await guard(action="escalate").inspect(asked(), complete)
    assert (said(found), found.report.action, outcomes(found)) == (
        "red",
        "escalate",
        [("escalate", "mended")],
    )
    assert [body["model"] for body in seen].count(ROBUST) == 2  # an answer and the probe that clears it
    assert found.report.mitigation is not None and found.report.mitigation.tokens == 2 * 31


async def test_an_adapter_that_is_flagged_as_well_is_not_believed_and_not_asked_again() -> None:
    complete, seen = with_adapter(MISLED)
    found = await guard(action="escalate").inspect(asked(action="escalate"), complete)
    assert (said(found), outcomes(found)) == ("blue", [("escalate", "flagged")])
    assert len(seen) == 8


async def test_an_adapter_that_agrees_confirms_the_answer_and_the_ladder_ends() -> None:
    complete, _ = with_adapter(world(both="blue", image="blue", text="red", neither="round"))
    order = ("escalate", "neutralise")
    found = await guard(action="ladder", order=order).inspect(asked(), complete)
    assert (said(found), outcomes(found)) == ("blue", [("escalate", "confirmed")])
    assert found.report.action == "annotate"


async def test_a_request_to_the_robust_adapter_itself_has_nowhere_to_escalate() -> None:
    complete, seen = with_adapter(MISLED)
    found = await guard(action="escalate").inspect({**asked(), "model": ROBUST}, complete)
    assert (outcomes(found), len(seen)) == ([("escalate", "unfit")], 4)


def fails(error: Exception) -> Complete:
    async def complete(body: JSON) -> JSON:
        raise error

    return complete


async def hangs(body: JSON) -> JSON:
    await asyncio.sleep(3600)
    raise AssertionError


@pytest.mark.parametrize(
    ("adapter", "outcome"),
    [
        (fails(EndpointError("no such model", status=404)), "missing"),
        (fails(EndpointError("out of memory", status=500)), "failed"),
        (fails(EndpointTimeout("late")), "timeout"),
        (fails(KeyError("a bug")), "failed"),
        (hangs, "timeout"),
    ],
)
async def test_a_rung_that_fails_leaves_the_original_answer_and_says_so(
    adapter: Complete, outcome: str
) -> None:
    complete, _ = with_adapter(adapter)
    found = await guard(action="escalate", deadline_s=0.05).inspect(asked(), complete)
    assert (said(found), found.report.action, outcomes(found)) == (
        "blue",
        "annotate",
        [("escalate", outcome)],
    )
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("adapter", "tokens"),
    [
        (hangs, 4 * 31),  # an answer and three views, each as dear as the dearest so far
        (fails(EndpointTimeout("late")), 4 * 31),
        (fails(EndpointError("out of memory", status=500)), 0),
    ],
)
async def test_a_rung_that_is_late_counts_as_what_was_set_aside_for_it(
    adapter: Complete, tokens: int
) -> None:
    complete, _ = with_adapter(adapter)
    found = await guard(action="escalate", deadline_s=0.05).inspect(asked(), complete)
    assert found.report.mitigation is not None and found.report.mitigation.tokens == tokens


async def test_a_late_rung_that_is_known_to_have_cost_more_counts_as_that() -> None:
    late = 0

    async def dear(body: JSON) -> JSON:
        nonlocal late
        late += 1
        if late > 1:
            return await hangs(body)
        return {**await MISLED(body), "usage": {"prompt_tokens": 500, "completion_tokens": 1}}

    complete, _ = with_adapter(dear)
    found = await guard(action="escalate", deadline_s=0.05).inspect(asked(), complete)
    assert outcomes(found) == [("escalate", "timeout")]
    assert found.report.mitigation is not None and found.report.mitigation.tokens == 501


async def test_where_no_time_is_left_a_rung_with_calls_is_not_begun_and_costs_nothing() -> None:
    async def cut_short(body: JSON) -> JSON:
        made = await MISLED(body)
        made["choices"][0]["finish_reason"] = "length"
        return made

    order = ("escalate", "neutralise")
    complete, seen = with_adapter(hangs, cut_short)
    found = await guard(action="ladder", order=order, deadline_s=0.05).inspect(asked(), complete)
    assert outcomes(found) == [("escalate", "timeout"), ("neutralise", "timeout")]
    assert found.report.mitigation is not None
    assert [each.tokens for each in found.report.mitigation.rungs] == [4 * 31, 0]
    assert [body["model"] for body in seen].count("m") == 4  # the request and its cells
    complete, _ = with_adapter(hangs)
    found = await guard(action="ladder", order=order, deadline_s=0.05).inspect(asked(), complete)
    assert outcomes(found) == [("escalate", "timeout"), ("neutralise", "mended")]  # which needs no call


async def test_an_adapter_that_is_not_served_costs_nothing_though_its_views_are_cut_off() -> None:
    async def missing(body: JSON) -> JSON:
        await asyncio.sleep(0.01 if body["max_tokens"] == 8 else 3600)  # the answer, and its views
        raise EndpointError("no such model", status=404)

    complete, _ = with_adapter(missing)
    found = await guard(action="escalate").inspect(asked(), complete)
    assert outcomes(found) == [("escalate", "missing")]
    assert found.report.mitigation is not None and found.report.mitigation.tokens == 0


async def test_without_an_adapter_to_ask_there_is_nothing_to_escalate_to() -> None:
    found = await guard(action="escalate", robust="").inspect(asked(), MISLED)
    assert outcomes(found) == [("escalate", "missing")]


# -- debias ----------------------------------------------------------------------------------------


def test_the_contrast_is_that_of_two_log_probabilities() -> None:
    full = {"A": 0.2, "B": 0.7, "C": 0.1}
    alone = {"A": 0.1, "B": 0.8, "C": 0.1}
    # p / p_alone^lambda: at 1 it is 2, 0.875, 1; at 0 the probabilities themselves; at 0.5 0.63, 0.78, 0.32
    assert debiased(full, alone, 1.0) == "A"
    assert debiased(full, alone, 0.0) == "B"
    assert debiased(full, alone, 0.5) == "B"


def letters(full: dict[str, float], image: dict[str, float], text: dict[str, float]) -> Complete:
    async def complete(body: JSON) -> JSON:
        seen, read = sees_picture(body), reads(body, "is blue.")
        top = full if seen and read else image if seen else text if read else dict.fromkeys("ABC", 1 / 3)
        best = max(top, key=top.__getitem__)
        return completion(best, [top])

    return complete


MISLED_LETTERS = letters(
    full={"A": 0.2, "B": 0.7, "C": 0.1},
    image={"A": 0.9, "B": 0.05, "C": 0.05},
    text={"A": 0.05, "B": 0.9, "C": 0.05},
)


async def test_options_are_debiased_from_the_replies_that_are_there_at_no_cost() -> None:
    seen: list[JSON] = []

    async def counted(body: JSON) -> JSON:
        seen.append(body)
        return await MISLED_LETTERS(body)

    found = await guard(action="debias").inspect(asked(f"{LIE}\n{LETTERED}"), counted)
    assert (said(found), outcomes(found), len(seen)) == ("A", [("debias", "mended")], 4)
    found = await guard(action="debias", debias_lambda=0.1).inspect(asked(f"{LIE}\n{LETTERED}"), counted)
    assert (said(found), outcomes(found)) == ("B", [("debias", "unchanged")])
    assert found.report.action == "annotate"


async def test_an_answer_that_is_no_label_cannot_be_debiased() -> None:
    found = await guard(action="debias").inspect(asked(), MISLED)
    assert outcomes(found) == [("debias", "unfit")]


async def test_a_label_that_a_list_leaves_out_makes_debias_unfit() -> None:
    model = letters({"A": 0.2, "B": 0.7, "C": 0.1}, {"A": 0.9, "B": 0.1}, {"B": 0.9, "A": 0.1})
    found = await guard(action="debias").inspect(asked(f"{LIE}\n{LETTERED}"), model)
    assert outcomes(found) == [("debias", "unfit")]


# -- rerank ----------------------------------------------------------------------------------------

TEXTS = {
    "flagged": "It is surely a big round blue ball there",
    "own": "It is surely a big round red ball there",
}


def long(text: str, logprob: float = -0.1) -> JSON:
    """A completion in words."""
    words = [f" {word}" if place else word for place, word in enumerate(text.split())]
    made = completion(text, [{word: math.exp(logprob)} for word in words])
    entries = made["choices"][0]["logprobs"]["content"]
    for place, entry in enumerate(entries):
        entry["logprob"] = logprob
        entry["top_logprobs"] = [
            {"token": entry["token"], "logprob": logprob, "bytes": None},
            {"token": f"other{place}", "logprob": -4.0, "bytes": None},
        ]
    return made


def scores(body: JSON) -> JSON:
    """The prompt's last words, each with its log-probability: the text alone makes blue likely, red not."""
    given = body["messages"][-1]["content"]
    words = [f" {word}" if place else word for place, word in enumerate(given.split())]
    seen, read = (
        any(sees_picture({"messages": [message]}) for message in body["messages"][:-1]),
        any(reads({"messages": [message]}, LIE) for message in body["messages"][:-1]),
    )
    likely = {"red": -0.7 if seen and read else -0.1 if seen else -6.0, "blue": -0.5 if read else -5.0}
    rows: list[JSON | None] = [None]
    for index, word in enumerate(words):
        value = likely.get(token_text(word), -0.1)
        rows.append(
            {
                str(index): {"logprob": value, "decoded_token": word},
                "99": {"logprob": -0.2 if value < -1 else -4.0, "decoded_token": " otherwise"},
            }
        )
    made = completion("!")
    return {**made, "prompt_logprobs": rows}


def writer() -> Complete:
    async def complete(body: JSON) -> JSON:
        if "prompt_logprobs" in body:
            return scores(body)
        blue = reads(body, LIE)
        text = TEXTS["flagged" if blue else "own"]
        if body.get("n"):
            one = long(text)["choices"][0]
            return {**long(text), "choices": [one] * body["n"]}
        if body["max_tokens"] == 2:
            short = long("It is")
            short["choices"][0]["finish_reason"] = "length"
            return short
        return long(text)

    return complete


def forcing(**policy: Any) -> Guard:
    config = GuardConfig(policies=(Policy(**policy),), teacher_forcing=True, thresholds=EASILY_SURE)
    return Guard(config)


async def test_the_candidate_that_the_irrelevant_text_does_not_explain_is_preferred() -> None:
    found = await forcing(action="rerank").inspect(asked(), writer())
    assert found.report.verdict.cause == "text"
    # of eight tokens seven are alike; red: (-0.7 + 6.0) / 8, blue: (-0.5 + 0.5) / 8
    assert (outcomes(found), said(found)) == ([("rerank", "mended")], TEXTS["own"])
    mitigation = found.report.mitigation
    assert mitigation is not None and mitigation.tokens == 6 * 31  # two calls, and two views of each of two


async def test_where_one_call_of_a_rung_fails_the_others_end_with_it_and_all_that_was_set_aside_counts() -> (
    None
):
    begun, ended = asyncio.Event(), asyncio.Event()
    answers = writer()

    async def complete(body: JSON) -> JSON:
        if body.get("n"):  # the rung's samples, asked for beside the picture's own answer
            await begun.wait()
            raise EndpointError("no samples")
        if "prompt_logprobs" in body or body["max_tokens"] == 2 or reads(body, LIE):
            return await answers(body)
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError("it went on")

    found = await forcing(action="rerank").inspect(asked(), complete)
    mitigation = found.report.mitigation
    assert (outcomes(found), ended.is_set()) == ([("rerank", "failed")], True)
    assert mitigation is not None and mitigation.tokens == 3 * 4 * (
        2 * 30 + 9
    )  # calls, candidates, a view's two prompts and nine words


async def test_without_any_weight_of_the_contrast_the_likelier_answer_stays() -> None:
    found = await forcing(action="rerank", debias_lambda=0.0).inspect(asked(), writer())
    assert (outcomes(found), said(found)) == ([("rerank", "unchanged")], TEXTS["flagged"])


async def test_an_engine_that_cannot_score_an_answer_cannot_rerank() -> None:
    found = await guard(action="rerank").inspect(asked(), MISLED)
    assert outcomes(found) == [("rerank", "unfit")]


async def test_an_answer_that_is_cut_into_other_tokens_when_it_is_given_is_not_reranked_at_any_cost() -> None:
    calls: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        if "prompt_logprobs" in body:
            raise EndpointError("cut into other tokens")
        return long(f"{'Blue' if reads(body, LIE) else 'Red'} is the big round ball that lies there")

    found = await forcing(action="rerank").inspect(asked(), complete)
    assert (found.report.verdict.cause, found.report.method) == ("text", "first_token")
    assert outcomes(found) == [("rerank", "unfit")]
    assert len(calls) == 1 + 2 * 3  # the request, and three cells that were asked to score its answer too


# -- abstain, budgets, loops ----------------------------------------------------------------------


async def test_abstaining_names_what_either_modality_alone_says() -> None:
    found = await guard(action="abstain").inspect(asked(), MISLED)
    assert said(found).endswith('The picture alone gives "red", the text alone gives "blue".')
    assert found.completion["choices"][0]["finish_reason"] == "content_filter"
    assert (found.report.action, outcomes(found)) == ("abstain", [("abstain", "abstained")])


async def test_a_ladder_that_settles_nothing_may_end_in_abstaining() -> None:
    complete, _ = with_adapter(MISLED)
    rules = {"action": "ladder", "order": ("escalate",), "otherwise": "abstain"}
    found = await guard(**rules).inspect(asked(), complete)
    assert outcomes(found) == [("escalate", "flagged"), ("abstain", "abstained")]
    assert found.report.action == "abstain"


async def test_a_rung_that_would_cost_more_than_is_left_is_not_begun() -> None:
    complete, seen = with_adapter(MISLED)
    found = await guard(action="escalate", max_tokens=4 * 31 - 1).inspect(asked(), complete)
    assert (said(found), outcomes(found), len(seen)) == ("blue", [("escalate", "budget")], 4)


async def test_what_costs_nothing_is_tried_without_a_budget() -> None:
    complete, _ = with_adapter(MISLED)
    rules = {"action": "ladder", "order": ("escalate", "neutralise"), "max_tokens": 0}
    found = await guard(**rules).inspect(asked(), complete)
    assert (said(found), outcomes(found)) == ("red", [("escalate", "budget"), ("neutralise", "mended")])


async def test_tokens_spent_by_one_rung_are_missing_to_the_next() -> None:
    async def cut_short(body: JSON) -> JSON:
        made = await MISLED(body)
        made["choices"][0]["finish_reason"] = "length"
        return made

    complete, seen = with_adapter(cut_short, cut_short)
    rules = {"action": "ladder", "order": ("escalate", "neutralise"), "max_tokens": 5 * 31 - 1}
    rules["early_stop"] = False  # else less is spent than was set aside
    found = await guard(**rules).inspect(asked(), complete)
    assert outcomes(found) == [("escalate", "flagged"), ("neutralise", "budget")]
    assert len(seen) == 8
    found = await guard(**{**rules, "max_tokens": 5 * 31}).inspect(asked(), complete)
    assert outcomes(found) == [("escalate", "flagged"), ("neutralise", "mended")]


class Savings:
    """A budget that is not filled up."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def take(self, wanted: int) -> int:
        granted = min(wanted, self.tokens)
        self.tokens -= granted
        return granted

    def give_back(self, tokens: int) -> None:
        self.tokens += tokens


async def test_a_callers_own_limit_holds_beside_the_policys() -> None:
    guarded, body = guard(action="escalate"), asked()
    budget = Savings(100)
    async with guarded.examine(guarded.plan(body), MISLED, budget=budget) as examination:
        completion = await MISLED(examination.body)
        report = await examination.report_on(lambda: reply_of(completion))
    assert report.mitigation is not None
    assert [each.outcome for each in report.mitigation.rungs] == [RungOutcome.BUDGET]
    assert budget.tokens == 100  # what was set aside and not spent came back


@pytest.mark.parametrize("text", ["B", " B.", "B. "])
def test_an_answer_is_a_label_with_or_without_a_full_stop(text: str) -> None:
    chat = Guard().plan(asked(f"{LIE}\n{LETTERED}")).chat
    assert label_of(Reply(text, "stop", "B", None), chat) == "B"
    assert label_of(Reply("B. blue", "stop", "B", None), chat) is None
