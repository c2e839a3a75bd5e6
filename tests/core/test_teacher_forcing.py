"""A longer answer scored as a whole: the call, its reading, the comparison, and the way through the guard."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard import Guard, GuardConfig, Thresholds
from modint_guard.chat.reply import answer_positions, reply_of
from modint_guard.errors import EndpointError
from modint_guard.judging.calibration import Calibration
from modint_guard.judging.divergence import js_lower_bound
from modint_guard.judging.scoring import comparable, compare, compare_forced, pointwise_mutual_information
from modint_guard.judging.statistic import flag_statistic
from modint_guard.mitigation.policy import Policy
from modint_guard.probing.teacher_forcing import (
    LAST_ROWS,
    answer_text,
    called_body,
    forced_body,
    forced_reply,
    most_tokens,
)
from modint_guard.report import Report
from modint_guard.types import (
    CELLS,
    FIRST_TOKEN,
    JSON,
    TEACHER_FORCED,
    Complete,
    Failure,
    Position,
    ProbeOutcome,
    Relevant,
    Reply,
    State,
)
from tests.core.fakes import ask, completion, reads, sees_picture, world
from tests.core.test_calibration import made
from tests.core.test_schedule import counted

LIE = "The ball is blue."
QUESTION = "What colour is the ball in the picture?"
IDS = {word: number for number, word in enumerate(("</s>", "It", " is", " red", " blue", " green", " not"))}
THRESHOLDS = Thresholds()


def position(token: str, **probabilities: float) -> Position:
    top = {name.replace("_", " "): math.log(p) for name, p in probabilities.items()}
    return Position(token, top[token], top, IDS.get(token))


def answer(*positions: Position) -> Reply:
    text = "".join(p.token for p in positions if p.token != "</s>")
    return Reply(text, "stop", positions[0].token, positions[0].top, positions=positions)


OWN = (position("It", It=0.9, A=0.1), position(" is", _is=1.0), position(" blue", _blue=0.9, _red=0.1))


def test_the_call_puts_the_answer_behind_the_view_and_asks_for_the_prompts_log_probabilities() -> None:
    view = {**ask(QUESTION), "max_tokens": 2, "logprobs": True, "top_logprobs": 20, "stop": ["."], "seed": 3}
    body = forced_body(view, "It is red", 5)
    assert body["messages"] == [*view["messages"], {"role": "assistant", "content": "It is red"}]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert (body["prompt_logprobs"], body["max_tokens"], body["return_token_ids"]) == (5, 1, True)
    assert body["seed"] == 3 and not {"logprobs", "top_logprobs", "stop", "vllm_xargs"} & set(body)


def test_the_call_leaves_out_what_would_change_no_probability_of_a_prompt() -> None:
    sampling = {"bad_words": ["no"], "logit_bias": {"3": 1}, "frequency_penalty": 2.0}
    assert not set(sampling) & set(forced_body({**ask(QUESTION), **sampling}, "It is red", 5))


def test_the_call_can_ask_for_the_last_rows_alone() -> None:
    assert forced_body(ask(QUESTION), "It is red", 5, 3)["vllm_xargs"] == {LAST_ROWS: 3}
    called = partial(called_body, ask(QUESTION), answer(*OWN), 5)
    assert called(last_rows=True)["vllm_xargs"] == {LAST_ROWS: 2048} and "vllm_xargs" not in called()


@given(st.text())
def test_no_text_has_more_tokens_than_bytes_but_for_one_in_front(text: str) -> None:
    assert most_tokens(text) == len([bytes([each]) for each in text.encode(errors="replace")]) + 1


def test_the_end_of_an_answer_is_not_of_its_positions() -> None:
    end = position("</s>", **{"</s>": 1.0})
    assert answer_positions(answer(*OWN, end)) == OWN
    odd = Reply("It is blue!", "stop", "It", OWN[0].top, positions=OWN)
    assert answer_positions(odd) == ()


def test_blanks_that_end_an_answer_are_not_given_to_a_view_unless_its_last_token_has_them() -> None:
    line, end = position("\n", **{"\n": 1.0}), position("</s>", **{"</s>": 1.0})
    longer = answer(*OWN, line, line, end)
    assert longer.text == "It is blue\n\n"
    assert (answer_positions(longer), answer_text(longer)) == (OWN, "It is blue")
    stop = position(".\n", **{".\n": 1.0})
    assert answer_text(answer(*OWN, stop, line, end)) == "It is blue.\n"


def scored(*entries: Mapping[str, float], ids: list[int] | None = None) -> JSON:
    """A completion whose prompt ends in these positions; the first word of each is the prompt's own."""
    held = [
        {
            str(IDS[word]): {"logprob": math.log(p), "rank": 1, "decoded_token": word}
            for word, p in entry.items()
        }
        for entry in entries
    ]
    body = {
        **completion("!"),
        "prompt_logprobs": [None, {"99": {"logprob": -1.0, "decoded_token": "?"}}, *held],
    }
    return body if ids is None else {**body, "prompt_token_ids": [1, 99, *ids]}


VIEWED: tuple[Mapping[str, float], ...] = ({"It": 0.8}, {" is": 1.0}, {" blue": 0.05, " red": 0.94})


@pytest.mark.parametrize("ids", [None, [1, 2, 4]])
def test_the_last_positions_of_the_prompt_are_the_answers(ids: list[int] | None) -> None:
    found = forced_reply(scored(*VIEWED, ids=ids), 7.0, answer(*OWN))
    assert [p.token for p in found.forced] == ["It", " is", " blue"]
    assert [p.id for p in found.forced] == [1, 2, 4]
    assert found.forced[2].top == pytest.approx({" blue": math.log(0.05), " red": math.log(0.94)})
    assert (found.prompt_tokens, found.cached_tokens, found.ms) == (30, 16, 7.0)


def test_other_tokens_than_were_generated_are_refused() -> None:
    with pytest.raises(EndpointError, match="split into other tokens"):
        forced_reply(scored({"It": 0.8}, {" is": 1.0}, {" red": 0.9}), 0.0, answer(*OWN))
    with pytest.raises(EndpointError, match="split into other tokens"):
        forced_reply(
            scored({"It": 0.8}, {" is": 1.0}, {" blue": 0.9, " red": 0.1}, ids=[1, 2, 3]), 0.0, answer(*OWN)
        )


@pytest.mark.parametrize(
    "body",
    [completion("!"), {**completion("!"), "prompt_logprobs": None}, scored({"It": 0.8}), scored(*[{}] * 3)],
)
def test_an_answer_without_the_prompts_log_probabilities_is_refused(body: JSON) -> None:
    with pytest.raises(EndpointError):
        forced_reply(body, 0.0, answer(*OWN))


def test_a_whole_answer_is_compared_by_hand() -> None:
    view = (position("It", It=0.8, A=0.2), position(" is", _is=1.0), position(" blue", _blue=0.05, _red=0.95))
    found = compare_forced(answer(*OWN), OWN, view, THRESHOLDS)
    assert (found.flip, found.reproduces, found.answer) == (True, False, "red")
    assert found.margin == pytest.approx(0.9)
    assert (found.p_answer, found.confidence) == (pytest.approx(0.05), pytest.approx(0.95))
    expected = (math.log(0.9 / 0.8) + 0.0 + math.log(0.9 / 0.05)) / 3
    assert found.delta_logprob == pytest.approx(expected)
    assert found.divergence == pytest.approx(js_lower_bound(OWN[2].top, view[2].top))


@pytest.mark.parametrize(
    ("second", "shown"), [({"ow": 0.1, "at": 0.9}, "cat"), ({"ow": 0.1, " dog": 0.9}, "dog")]
)
def test_a_piece_of_a_word_is_shown_with_what_stands_before_it(second: dict[str, float], shown: str) -> None:
    own = (position("c", c=0.9), position("ow", ow=0.9))
    view = (position("c", c=0.9), Position("ow", math.log(0.1), {t: math.log(p) for t, p in second.items()}))
    assert compare_forced(answer(*own), own, view, THRESHOLDS).answer == shown


@pytest.mark.parametrize(("believed", "counts"), [(0.05, False), (0.9, True)])
def test_what_speaks_against_the_end_of_a_word_counts_as_far_as_its_beginning_is_believed(
    believed: float, counts: bool
) -> None:
    # "38" beside a chart: the picture alone takes the 3 for one of many, but behind it would end for certain.
    own = (position("3", **{"3": 0.99, "1": 0.01}), position("8", **{"8": 0.99, "5": 0.01}))
    rest = (1 - believed) / 10
    first = {"3": math.log(believed)} | {str(100 + n): math.log(rest) for n in range(10)}
    second = {"8": math.log(0.001), "</s>": math.log(0.999)}
    forced = (Position("3", first["3"], first), Position("8", second["8"], second))
    view = Reply("", "stop", None, None, forced=forced)
    found = compare(answer(*own), view, (), THRESHOLDS)
    assert found is not None
    assert found.tokens[1].other == pytest.approx(believed * 0.999)
    scored = flag_statistic(dict.fromkeys(CELLS, found), Relevant.IMAGE, has_context=True)
    assert scored is not None and (scored.value > THRESHOLDS.least_score(2)) is counts


def test_a_view_that_gives_the_same_words_reproduces_the_answer() -> None:
    found = compare_forced(answer(*OWN), OWN, OWN, THRESHOLDS)
    assert (found.flip, found.reproduces, found.answer, found.divergence) == (False, True, "It is blue", 0.0)
    assert (found.delta_logprob, found.p_answer) == (0.0, pytest.approx(0.9))


def test_a_word_that_the_request_itself_was_not_sure_of_cannot_decide() -> None:
    own = (position("It", It=0.51, A=0.49), *OWN[1:])
    view = (position("It", It=0.1, A=0.9), *OWN[1:])
    found = compare_forced(answer(*own), own, view, THRESHOLDS)
    assert (found.flip, found.reproduces) == (False, True)
    unsure = (position("It", It=0.51, A=0.49),)
    assert compare_forced(answer(*unsure), unsure, view[:1], THRESHOLDS).flip is None


PROBABILITY = st.floats(0.02, 0.98)


@given(st.lists(st.tuples(PROBABILITY, PROBABILITY), min_size=1, max_size=6))
def test_of_any_answer_bounds_hold_and_a_flip_is_no_reproduction(pairs: list[tuple[float, float]]) -> None:
    own = [position(" blue", _blue=p, _red=1 - p) for p, _ in pairs]
    view = [position(" blue", _blue=q, _red=1 - q) for _, q in pairs]
    found = compare_forced(answer(*own), own, view, THRESHOLDS)
    assert 0.0 <= found.divergence <= 1.0 and 0.0 <= found.p_answer <= 1.0 and -1.0 <= found.margin <= 1.0
    assert not (found.flip and found.reproduces)
    assert found.delta_logprob == pytest.approx(
        pointwise_mutual_information([p.logprob for p in own], [p.logprob for p in view])
    )


def test_values_of_one_token_and_of_a_whole_answer_are_not_mixed() -> None:
    whole = Reply("It is blue", "stop", None, None, forced=OWN)
    mixed = comparable(
        answer(*OWN), {"no_context": whole, "prior": Reply("red", "stop", "red", {"red": 0.0})}
    )
    assert [reply.forced for reply in mixed.values() if isinstance(reply, Reply)] == [(), ()]
    late = comparable(answer(*OWN), {"no_context": whole, "prior": Failure(ProbeOutcome.TIMEOUT, "timeout")})
    assert isinstance(found := late["no_context"], Reply) and found.forced == ()
    both = {"no_context": whole, "prior": whole}
    assert comparable(answer(*OWN), both) == both


def speaker(*, scores: bool = True, ids: bool = True, end: str = "") -> tuple[list[JSON], "object"]:
    """A model that answers "It is" and a colour: the caption's where there is one, else the picture's."""
    calls: list[JSON] = []

    def colour(body: JSON) -> dict[str, float]:
        messages = {**body, "messages": [m for m in body["messages"] if m["role"] == "user"]}
        best = " blue" if reads(messages, "blue.") else " red" if sees_picture(messages) else " green"
        return dict.fromkeys((" red", " blue", " green"), 0.002) | {best: 0.996}

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        if "prompt_logprobs" in body:
            if not scores:
                return completion("!")
            given = body["messages"][-1]["content"].split(" ")[-1]
            last = colour(body)
            own = {f" {given}": last[f" {given}"]} | last
            return scored({"It": 0.9}, {" is": 0.9}, own, ids=[1, 2, IDS[f" {given}"]])
        tops = [{"It": 0.9, "A": 0.1}, {" is": 0.9, " was": 0.1}, colour(body), {"</s>": 1.0}]
        said = max(tops[2], key=tops[2].__getitem__)
        tops[3:3] = [{end: 1.0}] if end else []
        whole = completion(f"It is{said}{end}", tops)
        if body.get("return_token_ids") and ids:
            whole["choices"][0]["token_ids"] = [1, 2, IDS[said], *([9] if end else []), 0]
            whole["prompt_token_ids"] = [7, 7]
        return whole

    return calls, complete


FORCING = GuardConfig(teacher_forcing=True)
BODY = ask(f"{LIE}\n{QUESTION}")


@pytest.mark.parametrize("ids", [True, False])
async def test_a_longer_answer_that_follows_a_lie_late_is_flagged_as_a_whole(ids: bool) -> None:
    calls, model = speaker(ids=ids)
    found = await Guard(FORCING).inspect(BODY, model)  # type: ignore[arg-type]
    said = found.report.to_json()
    assert (said["verdict"], said["cause"], said["method"]) == ("flagged", "text", "teacher_forced")
    assert said["answers"] == {"image_only": "red", "text_only": "It is blue"}
    assert said["notes"] == []
    assert [row["tokens"] for row in said["probes"]] == [62] * 3  # two calls each
    assert len(calls) == 7
    choice = found.completion["choices"][0]
    assert choice["logprobs"] is None and choice.get("token_ids") is None
    assert found.completion.get("prompt_token_ids") is None


async def test_an_engine_that_can_is_asked_for_the_rows_of_the_answer_alone_and_the_report_is_the_same() -> (
    None
):
    calls, model = speaker()

    async def last_alone(body: JSON) -> JSON:
        whole = await model(body)  # type: ignore[operator]
        if "prompt_logprobs" in body:
            whole["prompt_logprobs"] = [None, *whole["prompt_logprobs"][-body["vllm_xargs"][LAST_ROWS] :]]
        return dict(whole)

    guard = Guard(FORCING)
    reports = []
    for able, complete in ((True, last_alone), (False, speaker()[1])):
        plan = guard.plan(BODY, last_rows=able)
        async with guard.examine(plan, complete) as examination:  # type: ignore[arg-type]
            reply = reply_of(await complete(examination.body))  # type: ignore[operator]
            reports.append((await examination.report_on(lambda: reply)).to_json())  # noqa: B023
    asked = [body["vllm_xargs"] for body in calls if "prompt_logprobs" in body]
    assert asked == [{LAST_ROWS: 3}] * 3
    assert not any("vllm_xargs" in body for body in calls if "prompt_logprobs" not in body)
    kept = [{key: value for key, value in each.items() if key != "probes"} for each in reports]
    assert kept[0] == kept[1] and kept[0]["method"] == "teacher_forced"


async def test_an_answer_that_ends_in_an_empty_line_is_scored_as_a_whole_too() -> None:
    calls, model = speaker(end="\n")
    found = await Guard(FORCING).inspect(BODY, model)  # type: ignore[arg-type]
    assert (found.report.verdict.cause, found.report.method) == ("text", "teacher_forced")
    given = [body["messages"][-1]["content"] for body in calls if "prompt_logprobs" in body]
    assert given == ["It is blue"] * 3
    assert found.completion["choices"][0]["message"]["content"] == "It is blue\n"


async def test_without_teacher_forcing_the_same_answer_passes_at_its_first_word_and_says_so() -> None:
    calls, model = speaker()
    found = await Guard().inspect(BODY, model)  # type: ignore[arg-type]
    assert (found.report.verdict.state, found.report.method) == (State.PASS, "first_token")
    assert len(found.report.notes) == 1 and "first word" in found.report.notes[0]
    assert len(calls) == 4 and "return_token_ids" not in calls[0]


async def test_an_upstream_that_cannot_score_answers_is_judged_at_the_first_word() -> None:
    _, model = speaker(scores=False)
    found = await Guard(FORCING).inspect(BODY, model)  # type: ignore[arg-type]
    assert found.report.method == "first_token"
    assert len(found.report.notes) == 1 and "first word" in found.report.notes[0]


# Nothing is settled by the first view of this answer, so that the others follow.
OPEN = made(
    fitted={
        relevant: each.model_copy(update={"flag_at": 0.9999, "clear_below": 0.0001})
        for relevant, each in made().fitted.items()
    }
)
TOLD = {**BODY, "modint": {"relevant": "image"}}


async def test_views_that_follow_a_longer_answer_are_asked_for_its_scores_alone() -> None:
    calls, model = speaker()
    found = (await Guard(FORCING, calibrations=[OPEN]).inspect(TOLD, model)).report  # type: ignore[arg-type]
    at_once = (await Guard(FORCING).inspect(TOLD, speaker()[1])).report  # type: ignore[arg-type]
    assert [row.tokens for row in found.probes] == [62, 31, 31]  # the first view was sent with the request
    assert len(calls) == 5
    assert found.verdict == at_once.verdict and found.statistic == at_once.statistic
    assert (found.image_only, found.text_only) == (at_once.image_only, at_once.text_only)


async def test_a_policy_that_corrects_hears_what_each_view_says_by_itself() -> None:
    calls, model = speaker()
    mends = replace(FORCING, policies=(Policy(action="neutralise"),))
    await Guard(mends).inspect(TOLD, model)  # type: ignore[arg-type]
    views = [body for body in calls[1:] if body.get("max_tokens") == 2]
    assert len(views) == 3


async def test_views_that_cannot_score_a_longer_answer_are_asked_for_a_word_after_all() -> None:
    calls, model = speaker(scores=False)
    found = (await Guard(FORCING, calibrations=[OPEN]).inspect(TOLD, model)).report  # type: ignore[arg-type]
    assert (found.method, found.verdict.state) == ("first_token", "pass")
    assert len(calls) == 7


async def test_views_that_wait_for_scores_in_vain_have_no_second_deadline() -> None:
    _, quick = speaker()
    slow = []

    async def model(body: JSON) -> JSON:
        if not sees_picture({**body, "messages": body["messages"][:1]}):  # a view that follows
            slow.append(body)
            await asyncio.sleep(0.2 if len(slow) > 2 else 60)
        return await quick(body)  # type: ignore[operator, no-any-return]

    hasty = replace(FORCING, deadline_s=0.5)
    found = (await Guard(hasty, calibrations=[OPEN]).inspect(TOLD, model)).report
    assert (found.verdict.state, found.verdict.reason, len(slow)) == ("unscored", "timeout", 2)


async def expecting(model: Complete, body: JSON = BODY, calibrations: Sequence[Calibration] = ()) -> Report:
    """The report on an answer that is expected to be a longer one."""
    guard = Guard(FORCING, calibrations=calibrations)
    examination = guard.examine(guard.plan(body, expects_longer=True), model)
    async with examination:
        completion = await model(examination.body)
        return await examination.report_on(lambda: reply_of(completion))


async def test_where_a_longer_answer_is_expected_views_wait_for_it_and_find_the_same() -> None:
    calls, model = speaker()
    found = await expecting(model)  # type: ignore[arg-type]
    at_once = (await Guard(FORCING).inspect(BODY, speaker()[1])).report  # type: ignore[arg-type]
    assert ["prompt_logprobs" in body for body in calls] == [False, True, True, True]
    assert [row.tokens for row in found.probes] == [31] * 3
    assert replace(found, probes=()) == replace(at_once, probes=())
    assert [replace(row, tokens=0, cached_tokens=0, ms=0) for row in found.probes] == [
        replace(row, tokens=0, cached_tokens=0, ms=0) for row in at_once.probes
    ]


async def test_where_a_longer_answer_is_expected_and_one_word_comes_views_are_asked_for_theirs() -> None:
    calls, model = counted(world(both="blue", image="red", text="blue", neither="green"))
    found = await expecting(model)
    at_once = (await Guard(FORCING).inspect(BODY, model)).report
    assert [body.get("max_tokens") for body in calls[:4]] == [None, 2, 2, 2]
    assert (found.verdict, found.method) == (at_once.verdict, "first_token")


async def test_a_control_does_not_wait_for_the_answer() -> None:
    begun = asyncio.Event()
    _, quick = speaker()

    async def model(body: JSON) -> JSON:
        if body.get("max_tokens") == 2:
            begun.set()
        elif "prompt_logprobs" not in body:
            await asyncio.wait_for(begun.wait(), 10)
        return await quick(body)  # type: ignore[operator, no-any-return]

    found = await expecting(model, {**BODY, "modint": {"probes": ["noop"]}})
    assert [row.name for row in found.probes] == ["no_context", "neutral_image", "prior", "noop"]


async def test_a_view_that_scored_an_answer_tells_of_its_first_word_if_another_cannot_score_it() -> None:
    _, quick = speaker()

    async def model(body: JSON) -> JSON:
        shown = {**body, "messages": body["messages"][:1]}
        if "prompt_logprobs" in body and not sees_picture(shown):
            raise EndpointError("no", status=400)
        return await quick(body)  # type: ignore[operator, no-any-return]

    found = await expecting(model, TOLD, [OPEN])
    assert (found.method, found.verdict.state) == ("first_token", "pass")
    assert [row.outcome for row in found.probes] == [ProbeOutcome.CONSISTENT] * 3


async def test_only_views_that_cannot_score_a_longer_answer_are_asked_for_a_word() -> None:
    calls, quick = speaker()

    async def model(body: JSON) -> JSON:
        if "prompt_logprobs" in body and LIE not in str(body["messages"]):
            calls.append(body)
            raise EndpointError("no", status=400)
        return await quick(body)  # type: ignore[operator, no-any-return]

    found = await expecting(model)
    assert (found.method, [row.tokens for row in found.probes]) == ("first_token", [31] * 3)
    assert len(calls) == 6  # the request, three scores, and a word of each of the two that failed


async def test_views_ask_nothing_of_an_answer_that_cannot_be_compared() -> None:
    calls, model = counted(world(both="", image="red", text="blue", neither="green"))
    found = await expecting(model)
    assert (found.verdict.state, found.verdict.reason, len(calls)) == ("skipped", "empty_answer", 1)


@pytest.mark.parametrize("config", [GuardConfig(), replace(FORCING, policies=(Policy(action="neutralise"),))])
async def test_views_wait_only_where_scores_are_all_that_is_needed(config: GuardConfig) -> None:
    assert Guard(FORCING).plan(BODY, expects_longer=True).schedule.waits
    assert not Guard(config).plan(BODY, expects_longer=True).schedule.waits


async def test_token_ids_that_the_client_asked_for_stay() -> None:
    _, model = speaker()
    found = await Guard(FORCING).inspect({**BODY, "return_token_ids": True}, model)  # type: ignore[arg-type]
    assert found.completion["choices"][0]["token_ids"] == [1, 2, 4, 0]


@pytest.mark.parametrize(
    "body",
    [
        {**BODY, "continue_final_message": True},
        {**BODY, "messages": [*BODY["messages"], {"role": "assistant", "content": "It"}]},
    ],
)
def test_an_answer_that_goes_on_from_given_words_is_not_scored_as_a_whole(body: JSON) -> None:
    assert Guard(FORCING).plan(body).schedule.method == FIRST_TOKEN
    assert Guard(FORCING).plan(BODY).schedule.method == TEACHER_FORCED
    assert Guard(FORCING).plan(BODY, forcing=False).schedule.method == FIRST_TOKEN


async def test_an_answer_of_too_many_tokens_is_not_scored_as_a_whole() -> None:
    calls, model = speaker()
    await Guard(GuardConfig(teacher_forcing=True, max_forced_tokens=2)).inspect(BODY, model)  # type: ignore[arg-type]
    assert len(calls) == 4
