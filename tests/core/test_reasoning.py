"""Models that reason first: what follows the reasoning is judged, by what views answer without reasoning."""

import math
from typing import Any

import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.chat.reply import StreamReply, answer_positions, reply_of
from modint_guard.chat.thoughts import DEFAULT_EMPTY as EMPTY_THOUGHT
from modint_guard.chat.thoughts import behind_thoughts, empty_thought
from modint_guard.judge import NOTE_REASONING
from modint_guard.report import Report
from modint_guard.types import JSON, Complete
from tests.core.fakes import ask, completion, reads, sees_picture

LIE = "The ball is blue."
QUESTION = "What colour is the ball in the picture?"
BODY = ask(f"{LIE}\n{QUESTION}")
THOUGHT = ("<think>", "\n", "blue or red?", "\n", "</think>", "\n\n")
IDS = {word: number for number, word in enumerate((*THOUGHT, "It", " is", " red", " blue", " green"))}


def thinker(
    *, believes: bool, words: tuple[str, ...] = ("",), apart: bool = False
) -> tuple[list[JSON], Complete]:
    """A model that thinks before it answers, unless its reply begins with an empty thought.

    believes: whether it follows the caption. words: what stands before the colour. apart: whether the engine
    puts the thought into a field of its own.
    """
    calls: list[JSON] = []

    def colours(messages: list[JSON]) -> dict[str, float]:
        body = {"messages": [message for message in messages if message["role"] == "user"]}
        told = reads(body, LIE) and (believes or not sees_picture(body))
        best = "blue" if told else "red" if sees_picture(body) else "green"
        space = " " if words != ("",) else ""
        return {f"{space}{colour}": 0.001 for colour in ("red", "blue", "green")} | {f"{space}{best}": 0.998}

    async def complete(body: JSON) -> JSON:
        calls.append(body)
        messages = body["messages"]
        reply = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
        tops = [*({word: 1.0} for word in words if word), colours(messages)]
        if "prompt_logprobs" in body:
            assert str(reply).startswith(EMPTY_THOUGHT)
            return scored(str(reply).removeprefix(EMPTY_THOUGHT), tops)
        if reply is None:
            tops = [*({word: 1.0} for word in THOUGHT), *tops]
        said = [max(top, key=top.__getitem__) for top in tops][: body.get("max_tokens")]
        answered = completion("".join(said), tops[: len(said)])
        message = answered["choices"][0]["message"]
        if apart and reply is None:
            behind = "".join(said[len(THOUGHT) :])
            message |= {"content": behind, "reasoning_content": "blue or red?"}
        return answered

    return calls, complete


def scored(answer: str, tops: list[dict[str, float]]) -> JSON:
    """A completion whose prompt ends in the given answer, as the model scores it."""
    entries = []
    colour = f" {answer.split(' ')[-1]}"
    for top in tops:
        best = colour if colour in top else next(iter(top))
        listed = {best: top[best]} | top
        entries.append(
            {str(IDS[word]): {"logprob": math.log(p), "decoded_token": word} for word, p in listed.items()}
        )
    return {
        **completion("!"),
        "prompt_logprobs": [None, {"99": {"logprob": -1.0, "decoded_token": "?"}}, *entries],
    }


async def report_of(model: Complete, body: JSON = BODY, **config: Any) -> Report:
    return (await Guard(GuardConfig(**config)).inspect(body, model)).report


@pytest.mark.parametrize("apart", [False, True])
async def test_a_lie_that_a_model_reasons_about_and_follows_is_flagged(apart: bool) -> None:
    calls, model = thinker(believes=True, apart=apart)
    found = (await report_of(model)).to_json()
    assert (found["verdict"], found["cause"], found["reasoning"]) == ("flagged", "text", True)
    assert found["answers"] == {"image_only": "red", "text_only": "blue"}
    assert found["notes"] == [NOTE_REASONING]
    assert {row["name"] for row in found["probes"]} == {"no_context", "neutral_image", "prior", "unreasoned"}
    again = [body for body in calls if body["messages"][-1]["role"] == "assistant"]
    assert len(calls) == 4 + 4 and len(again) == 4
    for body in again:
        assert body["messages"][-1]["content"] == EMPTY_THOUGHT
        assert (body["continue_final_message"], body["max_tokens"], body["temperature"]) == (True, 2, 0)


async def test_an_answer_that_does_not_follow_the_lie_passes_and_says_that_it_was_reasoned() -> None:
    _, model = thinker(believes=False)
    found = (await report_of(model)).to_json()
    assert (found["verdict"], found["reasoning"], found["method"]) == ("pass", True, "first_token")
    assert found["score"] < 0
    assert {row["flip"] for row in found["probes"] if row["name"] in ("no_context", "unreasoned")} == {False}


async def test_a_longer_answer_behind_reasoning_is_scored_as_a_whole() -> None:
    calls, model = thinker(believes=True, words=("It", " is"))
    found = (await report_of(model, teacher_forcing=True)).to_json()
    assert (found["verdict"], found["cause"], found["method"]) == ("flagged", "text", "teacher_forced")
    forced = [body for body in calls if "prompt_logprobs" in body]
    assert [body["messages"][-1]["content"] for body in forced] == [f"{EMPTY_THOUGHT}It is blue"] * 4


async def test_without_log_probabilities_of_the_views_nothing_is_passed() -> None:
    _, model = thinker(believes=True)

    async def unable(body: JSON) -> JSON:
        answered = await model(body)
        if body["messages"][-1]["role"] == "assistant":
            answered["choices"][0]["logprobs"] = None
        return answered

    found = await report_of(unable)
    assert (found.verdict.state, found.verdict.reason) == ("unscored", "no_logprobs")


async def test_where_views_cannot_be_kept_from_reasoning_the_answer_is_skipped_and_not_passed() -> None:
    _, model = thinker(believes=True)
    guard = Guard(GuardConfig(regenerate=True))
    plan = guard.plan(BODY, max_top_logprobs=0)
    answer = reply_of(await model(BODY))
    found = guard.judge.report(plan, answer, {})
    assert (found.verdict.state, found.verdict.reason, found.reasoning) == ("skipped", "reasoning", True)
    scoring = guard.plan(BODY)
    assert guard.judge.report(scoring, answer, {}).verdict.reason == "reasoning"


async def test_a_thought_that_is_cut_off_is_no_answer() -> None:
    _, model = thinker(believes=True)
    found = await report_of(model, {**BODY, "max_tokens": 4})
    assert (found.verdict.state, found.verdict.reason, found.reasoning) == ("skipped", "reasoning", True)


@pytest.mark.parametrize(
    ("text", "behind"),
    [
        ("<think>\nblue?\n</think>\n\nred", "\n\nred"),
        ("blue?</think>red", "red"),  # the template had opened the thought
        ("<think>blue?", ""),
        ("red", "red"),
        ("red <think>", "red <think>"),
        ("[THINK]Hm[/THINK]red", "red"),
        ("◁think▷Hm◁/think▷red", "red"),
        ("<seed:think>Hm</seed:think>red", "red"),
        ("<mm:think>Hm", ""),
        ("<|channel|>analysis<|message|>Hm", ""),
        ("<|channel|>analysis<|message|>Hm<|channel|>final<|message|>red", "red"),
        ("<|channel>thought\nHm<channel|>red", "red"),
        ("<|START_THINKING|>Hm<|END_THINKING|>red", "red"),
        ("Here's my thought process: Hm. Here's my response: red", " red"),
        ("Here's my thought process: Hm.", ""),
        ("I think red.", "I think red."),
        ("Here is my response: red", "Here is my response: red"),
        ("<thin line>", "<thin line>"),
    ],
)
def test_the_answer_is_what_stands_behind_the_thought(text: str, behind: str) -> None:
    assert behind_thoughts(text) == behind
    letters = StreamReply()
    for letter in text:
        letters.feed({"choices": [{"index": 0, "delta": {"content": letter}}]})
    assert letters.reply().text.strip() == behind.strip()
    assert letters.reply().skip == (None if behind.strip() else "reasoning")


@pytest.mark.parametrize(
    ("text", "empty"),
    [
        ("blue?</think>red", EMPTY_THOUGHT),
        ("<seed:think>Hm</seed:think>red", "<seed:think>\n\n</seed:think>\n\n"),
        ("[THINK]Hm[/THINK]red", "[THINK][/THINK]"),
        ("<|START_THINKING|>Hm<|END_THINKING|>red", "<|START_THINKING|><|END_THINKING|>"),
        ("<|channel|>analysis<|message|>Hm<|channel|>final<|message|>red", None),
        ("Here's my thought process: Hm. Here's my response: red", None),
    ],
)
def test_views_begin_with_an_empty_thought_in_the_models_own_marks(text: str, empty: str | None) -> None:
    assert empty_thought(text) == empty
    assert reply_of(completion(text)).empty_thought == empty


async def test_thoughts_that_cannot_be_left_empty_are_skipped_and_not_passed() -> None:
    _, model = thinker(believes=True)

    async def speaks(body: JSON) -> JSON:
        answered = await model(body)
        if body.get("max_tokens") != 2:
            text = "Here's my thought process: blue? Here's my response: blue"
            answered["choices"][0]["message"]["content"] = text
        return answered

    found = await report_of(speaks)
    assert (found.verdict.state, found.verdict.reason, found.reasoning) == ("skipped", "reasoning", True)


def test_tokens_and_text_are_those_of_the_answer_in_a_stream_too() -> None:
    tokens = [*THOUGHT, "It", " is", " red"]
    whole = reply_of(completion("".join(tokens), [{token: 0.9, "x": 0.1} for token in tokens]))
    stream = StreamReply()
    for token in tokens:
        entry = completion(token, [{token: 0.9, "x": 0.1}])["choices"][0]["logprobs"]
        stream.feed({"choices": [{"index": 0, "delta": {"content": token}, "logprobs": entry}]})
    for reply in (whole, stream.reply()):
        assert (reply.reasoning, reply.text, reply.token) == (True, "It is red", "It")
        assert [position.token for position in answer_positions(reply)] == ["It", " is", " red"]
    plain = reply_of(completion("It is red", [{"It": 1.0}]))
    assert not plain.reasoning
