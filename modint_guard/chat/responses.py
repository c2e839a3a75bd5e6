"""OpenAI's Responses API in terms of chat: a request as a chat body, a response as a chat completion.

The engine answers the request itself; views are sent as chat bodies. So a request becomes the same messages
as in vLLM 0.32 (`vllm.entrypoints.openai.responses.utils`), and what chat cannot say becomes a content part
that is not probed.
"""

from __future__ import annotations

from typing import Any

from modint_guard.chat.reply import shortened
from modint_guard.types import JSON, Call, TokenOptions

LOGPROBS = "message.output_text.logprobs"  # of the request's `include`
ENDED = ("response.completed", "response.incomplete")  # the events that hold the whole response
FAILED = ("response.failed", "error")  # those that end a stream without one
_SAME = (
    *("model", "modint", "temperature", "top_p", "top_k", "min_p", "seed", "logit_bias"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "chat_template_kwargs"),
    *("cache_salt", "structured_outputs", "stop"),
)
# What brings text into the prompt that is not in the request.
_ELSEWHERE = ("previous_response_id", "previous_input_messages", "prompt", "conversation", "background")
# What the guard adds to, and so has to be able to read.
_ADDED_TO: tuple[tuple[str, Any], ...] = (("include", list | None), ("top_logprobs", int | None))


def chat_of(request: JSON) -> JSON:
    """The chat body that asks what a request asks. An `input` of another shape is the engine's to refuse."""
    messages: list[JSON] = []
    if isinstance(request.get("instructions"), str) and request["instructions"]:
        messages.append({"role": "system", "content": request["instructions"]})
    asked = request.get("input")
    if isinstance(asked, str):
        messages.append({"role": "user", "content": asked})
    elif isinstance(asked, list) and asked and all(isinstance(item, dict) for item in asked):
        for item in asked:
            _add(item, messages)
    else:
        messages.append(_unknown("input"))
    messages = [message if _is_readable(message) else _unknown("input") for message in messages]
    messages += [_unknown(name) for name in _ELSEWHERE if request.get(name)]
    messages += [_unknown(name) for name, kind in _ADDED_TO if not isinstance(request.get(name), kind)]
    tools = _tools(request)
    messages += [_unknown("tools")] if tools is None else []
    body = {name: request[name] for name in _SAME if request.get(name) is not None}
    more = {**(tools or {}), **_length(request), **_format(request), **_logprobs(request)}
    return {**body, "messages": messages, **more}


def with_logprobs(request: JSON, top_logprobs: int) -> JSON:
    """The request, which asks for at least this many alternatives of every token as well."""
    include = [*(request.get("include") or ())]
    wanted = request.get("top_logprobs") or 0
    return {
        **request,
        "include": include if LOGPROBS in include else [*include, LOGPROBS],
        "top_logprobs": max(top_logprobs, wanted),
    }


def completion_of(response: JSON) -> JSON:
    """The chat completion that says what a response says; its texts as one. Raises what malformed ones raise
    (AttributeError, KeyError, TypeError), as `reply_of` expects.
    """
    items = response.get("output") or []
    parts = [part for item in items if item.get("type") == "message" for part in item.get("content") or ()]
    texts = [part["text"] for part in parts if part.get("type") == "output_text"]
    entries = [entry for part in parts for entry in part.get("logprobs") or ()]
    kinds = {item.get("type") for item in items} - {"message", "reasoning"}
    called = [item for item in items if item.get("type") == "function_call"]
    calls: list[JSON] = [{"function": {key: item.get(key) for key in Call._fields}} for item in called]
    reason = (response.get("incomplete_details") or {}).get("reason")
    message: JSON = {
        "content": "".join(texts),
        "reasoning": "reasoning" if any(item.get("type") == "reasoning" for item in items) else None,
        "tool_calls": [*calls, *({} for _ in kinds - {"function_call"})] or None,
        "refusal": next((part.get("refusal") for part in parts if part.get("type") == "refusal"), None),
    }
    choice: JSON = {
        "message": message,
        "finish_reason": "length" if reason == "max_output_tokens" else "stop",
        "logprobs": {"content": entries} if entries else None,
    }
    return {"choices": [choice], "usage": usage_of_response(response)}


def usage_of_response(response: JSON) -> JSON:
    """Its tokens, by the names of chat."""
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return {
        "prompt_tokens": usage.get("input_tokens"),
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": usage.get("input_tokens_details"),
    }


def without_added(document: Any, wanted: TokenOptions) -> Any:
    """A response or event without the log-probabilities that only the guard wanted."""
    if isinstance(document, list):
        return [without_added(entry, wanted) for entry in document]
    if not isinstance(document, dict):
        return document
    return {name: _shown(name, value, document, wanted) for name, value in document.items()}


def with_answer(response: JSON, answer: str) -> JSON:
    """The response with another answer as its only output."""
    part: JSON = {"type": "output_text", "text": answer, "annotations": [], "logprobs": None}
    messages = [item for item in response.get("output") or () if item.get("type") == "message"]
    item: JSON = {
        "type": "message",
        "id": messages[0]["id"] if messages else "msg_replaced",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    return {**response, "output": [item], "status": "completed", "incomplete_details": None}


def events_of_answer(response: JSON) -> list[JSON]:
    """The events of a stream of `with_answer`'s response, up to the one that completes it."""
    (item,) = response["output"]
    (part,) = item["content"]
    at = {"output_index": 0, "content_index": 0, "item_id": item["id"]}
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    events: list[JSON] = [
        {"type": "response.created", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        {"type": "response.output_text.delta", **at, "delta": part["text"], "logprobs": []},
        {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _add(item: JSON, messages: list[JSON]) -> None:
    """Adds an item of the input; calls and texts of one assistant turn are one message, as in vLLM."""
    kind = item.get("type") or "message"
    before = messages[-1] if messages and messages[-1].get("role") == "assistant" else None
    if kind == "message" and item.get("role") == "assistant":
        text = _assistant_text(item.get("content"))
        if before is not None and before.get("content") is None:
            before["content"] = text
        else:
            messages.append({"role": "assistant", "content": text})
    elif kind == "message":
        messages.append({name: item[name] for name in ("role", "content") if name in item})
    elif kind == "function_call":
        call = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        if before is None:
            before = {"role": "assistant", "content": None}
            messages.append(before)
        before.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        tool = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
        messages.append(tool)
    else:
        messages.append(_unknown(str(kind)))


def _is_readable(message: JSON) -> bool:
    """Whether a message has the shape that `messages_of` asks for."""
    content = message.get("content")
    is_list = isinstance(content, list) and all(isinstance(part, dict | str) for part in content)
    return isinstance(message.get("role"), str) and (is_list or isinstance(content, str | None))


def _assistant_text(content: Any) -> Any:
    """vLLM reads the first part of an assistant's message only."""
    first = content[0] if isinstance(content, list) and content else content
    return first.get("text") if isinstance(first, dict) else first


def _unknown(kind: str) -> JSON:
    return {"role": "user", "content": [{"type": f"responses:{kind}"}]}


def _length(request: JSON) -> JSON:
    limit = request.get("max_output_tokens")
    return {} if limit is None else {"max_completion_tokens": limit}


def _tools(request: JSON) -> JSON | None:
    """The functions that may be called, and whether one must be; None if other tools are offered too. vLLM's
    chat refuses an empty list, which clients of responses send.
    """
    tools, choice = request.get("tools"), request.get("tool_choice")
    if not tools:
        return {}
    if not isinstance(tools, list) or not all(_is_function(tool) for tool in tools):
        return None
    chosen = choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        chosen = {"type": "function", "function": {"name": choice.get("name")}}
    return {
        "tools": [{"type": "function", "function": _without_type(tool)} for tool in tools],
        **({} if choice is None else {"tool_choice": chosen}),
    }


def _is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function"


def _without_type(part: JSON) -> JSON:
    return {name: value for name, value in part.items() if name != "type"}


def _format(request: JSON) -> JSON:
    text, reasoning = request.get("text"), request.get("reasoning")
    wanted = text.get("format") if isinstance(text, dict) else None
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        wanted = {"type": "json_schema", "json_schema": _without_type(wanted)}
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    return {
        **({"response_format": wanted} if wanted else {}),
        **({"reasoning_effort": effort} if effort else {}),
    }


def _logprobs(request: JSON) -> JSON:
    include = request.get("include")
    if not isinstance(include, list) or LOGPROBS not in include:
        return {}
    return {"logprobs": True, "top_logprobs": request.get("top_logprobs") or 0}


def _shown(name: str, value: Any, document: JSON, wanted: TokenOptions) -> Any:
    if name == "logprobs" and isinstance(value, list):
        if not wanted.logprobs:
            return None if document.get("type") == "output_text" else []
        return shortened(value, wanted)
    if name == "top_logprobs" and isinstance(value, int):
        return wanted.top_logprobs
    return without_added(value, wanted)
