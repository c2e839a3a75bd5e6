"""Anthropic's Messages API in terms of chat: a request as a chat body, a completion as a message or events.

vLLM answers such a request by its own chat (`vllm.entrypoints.anthropic.serving`, read in 0.32), and gives no
log-probabilities with the message. So what is judged is asked as the same chat body, and the completion is
written as vLLM writes it. What chat cannot say becomes a content part that is not probed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from modint_guard.chat.reply import usage_of
from modint_guard.errors import EndpointError
from modint_guard.types import JSON

_SAME = ("model", "modint", "temperature", "top_p", "top_k", "chat_template_kwargs", "cache_salt")
_TOOLS = ("tool_use", "tool_result", "tool_reference", "tool_addition", "tool_removal")
_BILLING = "x-anthropic-billing-header"  # of Claude Code, another one with each request; vLLM leaves it out
_STOPPED = {"length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"}


def chat_of(request: JSON) -> JSON:
    """The chat body that asks what a request asks. A request of another shape is the engine's to refuse."""
    messages: list[JSON] = []
    if system := _system(request.get("system")):
        messages.append({"role": "system", "content": system})
    sent = request.get("messages")
    for message in sent if isinstance(sent, list) and sent else [None]:
        messages += _message(message)
    if not messages:
        messages.append(_unknown("messages"))
    limit = request.get("max_tokens")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        messages.append(_unknown("max_tokens"))
    body = {name: request[name] for name in _SAME if request.get(name) is not None}
    stop = request.get("stop_sequences")
    return {
        **body,
        "messages": messages,
        "max_tokens": limit,
        "max_completion_tokens": limit,
        **({"stop": stop} if stop else {}),
        **({"tools": [{}]} if request.get("tools") or _has_tools(sent) else {}),
        **_output(request.get("output_config")),
        **_thinking(request.get("thinking"), messages),
        **_stream(request),
    }


def image_url_of(source: JSON) -> str:
    """The address that vLLM makes of the source of a picture."""
    if source.get("type") == "url":
        return str(source.get("url"))
    return f"data:{source.get('media_type') or 'image/jpeg'};base64,{source.get('data')}"


def message_of(completion: JSON) -> JSON:
    """The message that says what a completion says, with its `modint` object if it has one. Raises
    EndpointError for a completion of another shape.
    """
    choices = completion.get("choices") or [{}]
    choice = choices[0] if isinstance(choices, list) else None
    said = (choice.get("message") or {}) if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(said, dict):
        raise EndpointError("The upstream's answer is not a chat completion of OpenAI's shape.")
    content: list[JSON] = []
    if thought := said.get("reasoning") or said.get("reasoning_content"):
        content.append({"type": "thinking", "thinking": thought, "signature": uuid4().hex})
    if said.get("content") or not content:
        content.append({"type": "text", "text": said.get("content") or ""})
    reason, sequence = _stop(choice)
    return {
        "id": completion.get("id"),
        "type": "message",
        "role": "assistant",
        "model": completion.get("model"),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": _usage(completion.get("usage")),
        **({"modint": completion["modint"]} if "modint" in completion else {}),
    }


class MessageEvents:
    """The events of a streamed message, made of the chunks of a chat."""

    def __init__(self) -> None:
        self._begun = False
        self._block: str | None = None  # the kind of the block that is open
        self._index = -1
        self._stop: tuple[str | None, str | None] = (None, None)
        self._usage: JSON = {}
        self._more: JSON = {}

    def feed(self, chunk: JSON) -> Iterator[JSON]:
        """The events of one chunk; none for one that only ends the answer or tells its tokens, and for what
        is not of OpenAI's shape.
        """
        self._usage = _usage(chunk["usage"]) if chunk.get("usage") else self._usage
        if "modint" in chunk:
            self._more = {"modint": chunk["modint"]}
        if not self._begun:
            self._begun = True
            yield {"type": "message_start", "message": self._empty(chunk)}
        for choice in _objects(chunk.get("choices")):
            delta = choice.get("delta")
            delta = delta if isinstance(delta, dict) else {}
            if thought := delta.get("reasoning") or delta.get("reasoning_content"):
                yield from self._said("thinking", {"type": "thinking_delta", "thinking": thought})
            if text := delta.get("content"):
                yield from self._said("text", {"type": "text_delta", "text": text})
            if choice.get("finish_reason"):
                self._stop = _stop(choice)

    def end(self) -> Iterator[JSON]:
        """The last events."""
        if self._index < 0:
            yield from self._opened("text")
        yield from self._closed()
        reason, sequence = self._stop
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield {"type": "message_delta", "delta": delta, "usage": self._usage or _usage(None), **self._more}
        yield {"type": "message_stop"}

    def _empty(self, chunk: JSON) -> JSON:
        first: JSON = {name: chunk.get(name) for name in ("id", "model", "usage")}
        return {**message_of(first), "content": []}

    def _said(self, kind: str, delta: JSON) -> Iterator[JSON]:
        if self._block != kind:
            yield from self._closed()
            yield from self._opened(kind)
        yield {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _opened(self, kind: str) -> Iterator[JSON]:
        self._block, self._index = kind, self._index + 1
        more = {"signature": ""} if kind == "thinking" else {}
        yield {
            "type": "content_block_start",
            "index": self._index,
            "content_block": {"type": kind, kind: "", **more},
        }

    def _closed(self) -> Iterator[JSON]:
        if self._block == "thinking":
            signed = {"type": "signature_delta", "signature": uuid4().hex}
            yield {"type": "content_block_delta", "index": self._index, "delta": signed}
        if self._block is not None:
            yield {"type": "content_block_stop", "index": self._index}
        self._block = None


def usage_of_message(usage: object) -> JSON | None:
    """The tokens of a message by the names of chat; None if it does not tell them."""
    if not isinstance(usage, dict):
        return None
    read = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    prompt = sum(number for name in read if isinstance(number := usage.get(name), int))
    return {"prompt_tokens": prompt, "completion_tokens": usage.get("output_tokens")}


def _system(system: Any) -> str:
    if isinstance(system, str):
        return system
    texts = [block.get("text") for block in _objects(system)]
    return "".join(text for text in texts if isinstance(text, str) and not text.startswith(_BILLING))


def _message(message: Any) -> list[JSON]:
    """A message; none for one of a user that says nothing, which vLLM leaves out.

    Where a `system` message between others goes depends on the model's template: it is not probed.
    """
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        return [_unknown("message")]
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not content:
        return [_unknown("content")]
    parts = [part for block in content if (part := _part(block)) is not None]
    thoughts = [
        block["thinking"]
        for block in content
        if isinstance(block, dict) and isinstance(block.get("thinking"), str)
    ]
    if not parts and role == "user":
        return []
    alone = len(parts) == 1 and parts[0]["type"] == "text"
    said = {"content": parts[0]["text"] if alone else parts} if parts else {}
    thought = {"reasoning": "".join(thoughts)} if thoughts else {}
    return [{"role": role, **said, **thought}]


def _part(block: Any) -> JSON | None:
    """A content block as a part; None for one that vLLM leaves out, or puts elsewhere."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]} if block["text"] else None
    if kind == "image" and isinstance(block.get("source"), dict):
        return {"type": "image_url", "image_url": {"url": image_url_of(block["source"])}}
    if kind in ("thinking", "redacted_thinking", *_TOOLS):
        return None
    return {"type": f"anthropic:{kind}"}


def _has_tools(messages: Any) -> bool:
    blocks = (block for message in _objects(messages) for block in _objects(message.get("content")))
    return any(block.get("type") in _TOOLS for block in blocks)


def _objects(document: Any) -> list[JSON]:
    """The objects of a list; none of anything else."""
    return [entry for entry in document if isinstance(entry, dict)] if isinstance(document, list) else []


def _unknown(kind: str) -> JSON:
    return {"role": "user", "content": [{"type": f"anthropic:{kind}"}]}


def _output(config: Any) -> JSON:
    if not isinstance(config, dict):
        return {}
    wanted, effort = config.get("format"), config.get("effort")
    return {
        **({"response_format": wanted} if wanted else {}),
        **({"reasoning_effort": effort} if effort else {}),
    }


def _thinking(config: Any, messages: list[JSON]) -> JSON:
    """What is asked of the model's reasoning. How vLLM switches it off depends on the model's template."""
    if config is None or (isinstance(config, dict) and config.get("type") == "adaptive"):
        return {}
    if isinstance(config, dict) and config.get("type") == "enabled":
        return {"thinking_token_budget": config.get("budget_tokens")}
    messages.append(_unknown("thinking"))
    return {}


def _stream(request: JSON) -> JSON:
    if request.get("stream") is not True:
        return {}
    return {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def _stop(choice: JSON) -> tuple[str | None, str | None]:
    """Why a message ended, and the sequence that ended it."""
    reason, matched = choice.get("finish_reason"), choice.get("stop_reason")
    if reason == "stop":
        return ("stop_sequence", matched) if isinstance(matched, str) else ("end_turn", None)
    return _STOPPED.get(str(reason)), None


def _usage(usage: Any) -> JSON:
    """Tokens by the names of messages; those read from the cache are not among `input_tokens`."""
    tokens = usage_of({"usage": usage})
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    tells = isinstance(details, dict) and details.get("cached_tokens") is not None
    return {
        "input_tokens": max(0, tokens.prompt_tokens - tokens.cached_tokens),
        "output_tokens": tokens.completion_tokens,
        **({"cache_read_input_tokens": tokens.cached_tokens} if tells else {}),
    }
