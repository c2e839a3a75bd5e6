"""Reading completions and streams, and taking out what the client did not ask for."""

import math
from typing import Any

import pytest

from modint_guard.chat.reply import StreamReply, reply_of, strip_added
from modint_guard.errors import EndpointError
from modint_guard.types import JSON, TokenOptions
from tests.core.fakes import completion


def chunk(text: str | None = None, tops: JSON | None = None, finish: str | None = None, **delta: Any) -> JSON:
    logprobs = completion("", [tops])["choices"][0]["logprobs"] if tops else None
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish, "logprobs": logprobs}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def test_a_whole_completion_is_read() -> None:
    found = reply_of(completion("red", [{"red": 0.75, "blue": 0.25}]), ms=3.0)
    assert (found.text, found.finish_reason, found.token, found.skip) == ("red", "stop", "red", None)
    assert found.top == pytest.approx({"red": math.log(0.75), "blue": math.log(0.25)})
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens, found.ms) == (30, 1, 16, 3.0)


def test_the_first_content_position_is_past_the_blanks() -> None:
    found = reply_of(
        completion(" \n7", [{" ": 1.0}, {"▁": 0.9, "x": 0.1}, {"7": 0.6, "9": 0.4}, {"</s>": 1.0}])
    )
    assert found.token == "7"
    assert found.top is not None and set(found.top) == {"7", "9"}


def test_tokens_with_the_same_text_are_added_up() -> None:
    body = completion("�", [{"�": 0.5, "x": 0.2}])
    body["choices"][0]["logprobs"]["content"][0]["top_logprobs"].append(
        {"token": "�", "logprob": math.log(0.25)}
    )
    top = reply_of(body).top
    assert top is not None and top["�"] == pytest.approx(math.log(0.75))


def test_impossible_tokens_do_not_disturb() -> None:
    body = completion("a", [{"a": 1.0}])
    body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] += [{"token": "b", "logprob": -9999.0}] * 2
    top = reply_of(body).top
    assert top is not None and top["b"] == pytest.approx(-9998.3, abs=0.1)


def test_a_completion_without_log_probabilities_has_none() -> None:
    assert (reply_of(completion("red")).token, reply_of(completion("red")).top) == (None, None)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            "tool_calls",
        ),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "tool_calls"),
        ({"reasoning_content": "Let me see."}, "reasoning"),
        ({"reasoning": "Let me see."}, "reasoning"),
        ({"refusal": "I cannot."}, "refusal"),
        ({"audio": {"id": "a"}}, "audio"),
        ({"tool_calls": [], "reasoning_content": None, "refusal": None}, None),
    ],
)
def test_answers_that_are_not_plain_text_name_why(message: JSON, reason: str | None) -> None:
    assert reply_of(completion("red", [{"red": 1.0}], **message)).skip == reason
    stream = StreamReply()
    stream.feed(chunk("red", {"red": 1.0}, **message))
    assert stream.reply().skip == reason


@pytest.mark.parametrize(
    "text",
    [
        "<think>The caption says blue.</think>red",
        "\n<think>cut off",
        "The caption says blue.\n</think>\nred",
        "[THINK]Hm[/THINK]red",
        "◁think▷Hm◁/think▷red",
        "<seed:think>Hm</seed:think>red",
        "<|channel|>analysis<|message|>Hm",
        "<mm:think>Hm",
        "<|START_THINKING|>Hm<|END_THINKING|>red",
        "Here's my thought process: Hm. Here's my response: red",
    ],
)
def test_thoughts_in_the_text_are_no_answer(text: str) -> None:
    assert reply_of(completion(text, [{"red": 1.0}])).skip == "reasoning"
    stream = StreamReply()
    for letter in text:
        stream.feed(chunk(letter, {letter: 1.0}))
    assert stream.reply().skip == "reasoning"


@pytest.mark.parametrize(
    "text", ["I think red.", "<thin line>", "Here is my answer: red", "The tag is <think>."]
)
def test_a_word_about_thinking_is_an_answer(text: str) -> None:
    assert reply_of(completion(text)).skip is None


def test_empty_and_several_answers_name_why() -> None:
    assert reply_of(completion(" \n")).skip == "empty_answer"
    several = completion("red")
    several["choices"] *= 2
    assert reply_of(several).skip == "multiple_choices"


@pytest.mark.parametrize(
    "bad", [{"choices": ["red"]}, {"choices": [{"message": "red"}]}, {"choices": 3}, {"usage": 3}]
)
def test_what_is_no_completion_is_refused(bad: JSON) -> None:
    with pytest.raises(EndpointError, match="not a chat completion"):
        reply_of(bad)


def test_a_stream_says_the_same_as_the_whole() -> None:
    stream = StreamReply()
    stream.feed(chunk("", role="assistant"))
    stream.feed(chunk(" ", {" ": 1.0}))
    stream.feed(chunk("red", {"red": 0.75, "blue": 0.25}))
    stream.feed(chunk(" ball", {" ball": 1.0}, finish="stop"))
    stream.feed({"choices": [], "usage": completion("")["usage"]})
    assert stream.reply(3.0) == reply_of(
        completion(" red ball", [{" ": 1.0}, {"red": 0.75, "blue": 0.25}, {" ball": 1.0}]), 3.0
    )


def test_a_second_choice_in_a_stream_is_not_judged() -> None:
    stream = StreamReply()
    stream.feed(chunk("red"))
    second = chunk("blue")
    second["choices"][0]["index"] = 1
    stream.feed(second)
    assert (stream.reply().text, stream.reply().skip) == ("red", "multiple_choices")


def test_log_probabilities_nobody_asked_for_are_taken_out() -> None:
    full = completion("red", [{"red": 0.5, "blue": 0.3, "green": 0.2}])
    bare = strip_added(full, TokenOptions())
    assert bare["choices"][0]["logprobs"] is None
    assert full["choices"][0]["logprobs"] is not None
    assert {**bare["choices"][0], "logprobs": 0} == {**full["choices"][0], "logprobs": 0}


@pytest.mark.parametrize("k", [0, 1, 2])
def test_what_the_client_asked_for_stays(k: int) -> None:
    full = completion("red", [{"red": 0.5, "blue": 0.3, "green": 0.2}])
    (entry,) = strip_added(full, TokenOptions(True, k))["choices"][0]["logprobs"]["content"]
    assert [item["token"] for item in entry["top_logprobs"]] == ["red", "blue", "green"][:k]
    assert entry["logprob"] == pytest.approx(math.log(0.5))


def test_nothing_to_take_out_gives_the_same_object_back() -> None:
    plain = completion("red")
    assert strip_added(plain, TokenOptions()) is plain
    assert strip_added({"choices": []}, TokenOptions()) == {"choices": []}
