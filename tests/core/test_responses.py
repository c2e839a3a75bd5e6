"""The Responses API in terms of chat: the messages of a request, the answer of a response."""

from typing import Any

import pytest

from modint_guard.chat.eligibility import unsupported_part
from modint_guard.chat.parts import in_one_form
from modint_guard.chat.reply import reply_of
from modint_guard.chat.responses import chat_of, completion_of, with_logprobs, without_added
from modint_guard.types import JSON, Call, TokenOptions

CALL = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
MADE = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def output(*items: JSON, **fields: Any) -> JSON:
    return {"output": list(items), "usage": {"input_tokens": 30, "output_tokens": 2}, **fields}


def said(text: str) -> JSON:
    return {"type": "message", "id": "m", "content": [{"type": "output_text", "text": text}]}


def test_instructions_and_a_text_are_two_messages() -> None:
    request = {"model": "m", "instructions": "Be brief.", "input": "What?", "max_output_tokens": 9}
    assert chat_of({**request, "temperature": 0, "store": True}) == {
        "model": "m",
        "temperature": 0,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}],
        "max_completion_tokens": 9,
    }


def test_calls_of_tools_in_the_history_are_chats() -> None:
    history = [
        {"role": "user", "content": "What?"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me look."}],
        },
        CALL,
        {"type": "function_call_output", "call_id": "c", "output": "red"},
        CALL,
        {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
    ]
    assert chat_of({"input": history})["messages"] == [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [MADE]},
        {"role": "tool", "tool_call_id": "c", "content": "red"},
        {"role": "assistant", "content": None, "tool_calls": [MADE]},
        {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
    ]


@pytest.mark.parametrize(
    "request_",
    [
        {"input": "What?", "previous_response_id": "resp_0"},
        {"input": "What?", "prompt": {"id": "p"}},
        {"input": []},
        {"messages": []},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"type": "reasoning", "summary": []}]},
        {"input": "What?", "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]},
        {"input": "What?", "tools": {"type": "function"}},
    ],
)
def test_what_chat_cannot_say_is_not_probed(request_: JSON) -> None:
    chat = chat_of(request_)
    assert unsupported_part({"messages": in_one_form(chat["messages"])}) == "unsupported_part"


def test_effort_and_format_are_chats() -> None:
    wanted = {"type": "json_schema", "name": "a", "schema": {}}
    chat = chat_of({"input": "What?", "reasoning": {"effort": "low"}, "text": {"format": wanted}})
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    assert (chat["reasoning_effort"], chat["response_format"]) == ("low", schema)


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ("required", "required"),
        ({"type": "function", "name": "look"}, {"type": "function", "function": {"name": "look"}}),
    ],
)
def test_functions_that_may_be_called_are_chats(choice: Any, chosen: Any) -> None:
    told = {"name": "look", "parameters": {"type": "object"}}
    chat = chat_of({"input": "What?", "tools": [{"type": "function", **told}], "tool_choice": choice})
    assert chat["tools"] == [{"type": "function", "function": told}]
    assert (chat["tool_choice"], chat_of({"input": "What?", "tools": []}).get("tools")) == (chosen, None)


def test_the_calls_of_a_response_are_read_and_so_is_a_call_that_chat_does_not_know() -> None:
    reply = reply_of(completion_of(output({"type": "reasoning", "id": "r"}, said("So:"), CALL, CALL)))
    assert (reply.calls, reply.text) == ((Call("look", "{}"), Call("look", "{}")), "So:")
    assert (reply.skip, reply.reasoning) == ("tool_calls", True)
    searched = reply_of(completion_of(output({"type": "web_search_call"})))
    assert (searched.skip, searched.calls) == ("tool_calls", (Call("", ""),))


def test_log_probabilities_are_asked_for_and_only_those_wanted_are_shown() -> None:
    request = {"include": ["x", "message.output_text.logprobs"], "top_logprobs": 1}
    assert with_logprobs(request, 20) == {**request, "top_logprobs": 20}
    assert chat_of({"input": "?", **request})["top_logprobs"] == 1
    entry = {"token": "red", "logprob": -0.1, "top_logprobs": [{"token": "red"}, {"token": "blue"}]}
    part = {"type": "output_text", "text": "red", "logprobs": [entry]}
    wanted = without_added({"content": [part], "top_logprobs": 20}, TokenOptions(True, 1, False))
    assert wanted["top_logprobs"] == 1
    assert wanted["content"][0]["logprobs"][0]["top_logprobs"] == [{"token": "red"}]
    unwanted = without_added({"content": [part], "logprobs": [entry]}, TokenOptions(False, 0, False))
    assert (unwanted["content"][0]["logprobs"], unwanted["logprobs"]) == (None, [])


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([said("red")], None),
        ([{"type": "reasoning", "id": "r"}], "reasoning"),
        ([CALL], "tool_calls"),
        ([], "empty_answer"),
    ],
)
def test_an_answer_that_is_not_plain_text_names_why(items: list[JSON], reason: str | None) -> None:
    assert reply_of(completion_of(output(*items))).skip == reason


def test_an_answer_behind_reasoning_is_told_from_it() -> None:
    reply = reply_of(completion_of(output({"type": "reasoning", "id": "r"}, said("red"))))
    assert (reply.text, reply.skip, reply.reasoning) == ("red", None, True)


def test_a_response_that_was_cut_off_is_of_that_length() -> None:
    cut = output(said("re"), status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    reply = reply_of(completion_of(cut))
    assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == (
        "re",
        "length",
        30,
        2,
    )
