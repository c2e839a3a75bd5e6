"""Anthropic's requests as chat bodies, and completions as messages, as vLLM's own converter has them."""

from typing import Any

import pytest

from modint_guard.chat.anthropic import MessageEvents, chat_of, message_of, usage_of_message

JSON = dict[str, Any]
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def asked(*messages: JSON, **fields: Any) -> JSON:
    return {"model": "m", "max_tokens": 9, "messages": [*messages], **fields}


def test_texts_and_pictures_become_parts_and_a_lone_text_a_string() -> None:
    content = [PNG, {"type": "text", "text": "What?"}, {"type": "text", "text": ""}]
    body = chat_of(asked({"role": "user", "content": content}, {"role": "assistant", "content": "Red."}))
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "What?"},
    ]
    assert body["messages"] == [{"role": "user", "content": parts}, {"role": "assistant", "content": "Red."}]
    alone = chat_of(asked({"role": "user", "content": [{"type": "text", "text": "What?"}]}))
    assert alone["messages"] == [{"role": "user", "content": "What?"}]


def test_the_system_text_is_joined_without_what_changes_with_each_request() -> None:
    system = [{"type": "text", "text": text} for text in ("x-anthropic-billing-header: a=1", "Be ", "brief.")]
    body = chat_of(asked({"role": "user", "content": "What?"}, system=system))
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_options_have_the_names_of_chat() -> None:
    body = chat_of(
        asked(
            {"role": "user", "content": "What?"},
            stop_sequences=["."],
            temperature=0,
            top_k=5,
            stream=True,
            thinking={"type": "enabled", "budget_tokens": 2048},
            output_config={"effort": "low"},
            metadata={"user_id": "u"},
        )
    )
    assert {name: value for name, value in body.items() if name != "messages"} == {
        "model": "m",
        "max_tokens": 9,
        "max_completion_tokens": 9,
        "stop": ["."],
        "temperature": 0,
        "top_k": 5,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "thinking_token_budget": 2048,
        "reasoning_effort": "low",
    }


def test_earlier_reasoning_stays_with_its_message() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "Red."},
    ]
    (message,) = chat_of(asked({"role": "assistant", "content": content}))["messages"]
    assert message == {"role": "assistant", "content": "Red.", "reasoning": "Hm."}


def test_a_user_who_says_nothing_is_left_out() -> None:
    nothing = {"role": "user", "content": [{"type": "text", "text": ""}]}
    body = chat_of(asked(nothing, {"role": "user", "content": "What?"}))
    assert body["messages"] == [{"role": "user", "content": "What?"}]


def test_tools_in_a_conversation_count_as_tools() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": "5"}
    assert chat_of(asked({"role": "user", "content": [result]}))["tools"]


@pytest.mark.parametrize(
    ("finish", "matched", "reason"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", 128001, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
        ("content_filter", None, ("refusal", None)),
    ],
)
def test_a_message_says_why_it_ended(finish: str, matched: Any, reason: tuple[str, str | None]) -> None:
    choice = {"message": {"content": "Red."}, "finish_reason": finish, "stop_reason": matched}
    message = message_of({"id": "1", "model": "m", "choices": [choice]})
    assert (message["stop_reason"], message["stop_sequence"]) == reason


def test_reasoning_comes_before_the_text_and_cached_tokens_are_counted_apart() -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}}
    said = {"reasoning": "Hm.", "content": "Red."}
    message = message_of({"choices": [{"message": said, "finish_reason": "stop"}], "usage": usage})
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["content"][0]["signature"]
    assert message["usage"] == {"input_tokens": 24, "output_tokens": 3, "cache_read_input_tokens": 16}
    assert usage_of_message(message["usage"]) == {"prompt_tokens": 40, "completion_tokens": 3}


def test_an_empty_answer_is_an_empty_text() -> None:
    message = message_of({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]})
    assert message["content"] == [{"type": "text", "text": ""}]


def test_chunks_become_blocks_of_reasoning_and_of_text() -> None:
    events = MessageEvents()
    made: list[JSON] = []
    for delta in ({"role": "assistant"}, {"reasoning": "H"}, {"reasoning": "m"}, {"content": "Red"}):
        made += events.feed({"id": "1", "model": "m", "choices": [{"delta": delta}]})
    made += events.feed(
        {"choices": [{"delta": {}, "finish_reason": "length"}], "modint": {"verdict": "pass"}}
    )
    made += events.feed({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}})
    made += events.end()
    assert [(event["type"], event.get("index")) for event in made] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert made[4]["delta"]["type"] == "signature_delta"
    assert made[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
        "usage": {"input_tokens": 4, "output_tokens": 3},
        "modint": {"verdict": "pass"},
    }


def test_a_stream_without_text_has_an_empty_block() -> None:
    made = list(MessageEvents().end())
    assert [event["type"] for event in made][:2] == ["content_block_start", "content_block_stop"]
