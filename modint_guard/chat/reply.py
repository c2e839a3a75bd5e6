"""Read what a completion says: its text, its tokens and the alternatives at its first content position.

The first content position is the first generated token with text other than blanks; the tokens before it are
passed over. A view is asked for a token or two only, so of a longer answer it shows the first word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from modint_guard.errors import EndpointError
from modint_guard.types import JSON, Position, Reply, TokenOptions


def reply_of(completion: JSON, ms: float = 0.0) -> Reply:
    """The first choice of a whole chat completion. Raises EndpointError where it is none."""
    try:
        return _read(completion, ms)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise EndpointError("The upstream's answer is no chat completion of OpenAI's shape.") from exc


def _read(completion: JSON, ms: float) -> Reply:
    choices = completion.get("choices") or [{}]
    choice = choices[0]
    message = choice.get("message") or {}
    entries = (choice.get("logprobs") or {}).get("content")
    token, top = _first_content(entries)
    text = _text(message.get("content"))
    skip = "multiple_choices" if len(choices) > 1 else _skip(message) or _empty(text)
    reply = _reply(text, choice.get("finish_reason"), token, top, completion.get("usage"), ms, skip)
    return replace(reply, positions=tuple(_positions(entries, choice.get("token_ids"))))


class StreamReply:
    """Collects the same from the chunks of a stream: `feed` each one, then read `reply`."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._token: str | None = None
        self._top: dict[str, float] | None = None
        self._positions: list[Position] = []
        self._finish_reason: str | None = None
        self._usage: JSON | None = None
        self._skip: str | None = None

    def feed(self, chunk: JSON) -> None:
        """Take in one `chat.completion.chunk` object."""
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) != 0:
                self._skip = self._skip or "multiple_choices"
                continue
            delta = choice.get("delta") or {}
            self._text.append(_text(delta.get("content")))
            self._skip = self._skip or _skip(delta)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            entries = (choice.get("logprobs") or {}).get("content")
            self._positions.extend(_positions(entries, choice.get("token_ids")))
            if self._token is None:
                self._token, self._top = _first_content(entries)

    def reply(self, ms: float = 0.0) -> Reply:
        """What the chunks so far say."""
        text = "".join(self._text)
        skip = self._skip or _empty(text)
        reply = _reply(text, self._finish_reason, self._token, self._top, self._usage, ms, skip)
        return replace(reply, positions=tuple(self._positions))


def strip_added(completion: JSON, asked: TokenOptions) -> JSON:
    """A completion or chunk without the log-probabilities and token ids the client did not ask for; the given
    one stays as it is.
    """
    if not asked.token_ids:
        completion = _without_token_ids(completion)
    choices = completion.get("choices")
    if not choices or not any(choice.get("logprobs") for choice in choices):
        return completion
    return {**completion, "choices": [_stripped(choice, asked) for choice in choices]}


def _without_token_ids(completion: JSON) -> JSON:
    if completion.get("prompt_token_ids") is not None:
        completion = {**completion, "prompt_token_ids": None}
    choices = completion.get("choices") or ()
    if any(choice.get("token_ids") is not None for choice in choices):
        bare = [{**choice, "token_ids": None} if "token_ids" in choice else choice for choice in choices]
        completion = {**completion, "choices": bare}
    return completion


def _stripped(choice: JSON, asked: TokenOptions) -> JSON:
    held = choice.get("logprobs")
    if not held:
        return choice
    if not asked.logprobs:
        return {**choice, "logprobs": None}
    content = [
        {**entry, "top_logprobs": (entry.get("top_logprobs") or [])[: asked.top_logprobs]}
        for entry in held.get("content") or ()
    ]
    return {**choice, "logprobs": {**held, "content": content}}


def _first_content(entries: Any) -> tuple[str | None, dict[str, float] | None]:
    """Token and alternatives at the first content position; an entry without alternatives gives none."""
    for entry in entries or ():
        if str(entry.get("token") or "").strip(" \t\r\n\u2581\u0120\u010a"):
            alternatives = entry.get("top_logprobs") or []
            return str(entry["token"]), _alternatives(entry, alternatives) if alternatives else None
    return None, None


def _positions(entries: Any, ids: Any) -> Iterator[Position]:
    """Every token that has alternatives, with its id where there is one for each."""
    listed = list(entries or ())
    known = ids if isinstance(ids, list) and len(ids) == len(listed) else [None] * len(listed)
    for entry, id_ in zip(listed, known, strict=True):
        if alternatives := entry.get("top_logprobs"):
            yield Position(
                str(entry["token"]), float(entry["logprob"]), _alternatives(entry, alternatives), id_
            )


def _alternatives(entry: JSON, alternatives: list[JSON]) -> dict[str, float]:
    """Log-probabilities by token text. Different tokens with one text (bytes that make no character) are
    added up.
    """
    top: dict[str, float] = {}
    for item in alternatives:
        token, logprob = str(item["token"]), float(item["logprob"])
        top[token] = log_sum(top[token], logprob) if token in top else logprob
    top.setdefault(str(entry["token"]), float(entry["logprob"]))  # a sampled token may lie outside the top k
    return top


def _skip(message: Mapping[str, Any]) -> str | None:
    """The SKIPPED reason of an answer that is not plain text."""
    if message.get("tool_calls") or message.get("function_call"):
        return "tool_calls"
    if message.get("reasoning_content") or message.get("reasoning"):
        return "reasoning"
    if message.get("refusal"):
        return "refusal"
    return "audio" if message.get("audio") else None


def _empty(text: str) -> str | None:
    return None if text.strip() else "empty_answer"


def _text(content: Any) -> str:
    return content if isinstance(content, str) else ""


def _reply(
    text: str,
    finish_reason: str | None,
    token: str | None,
    top: dict[str, float] | None,
    usage: JSON | None,
    ms: float,
    skip: str | None,
) -> Reply:
    usage = usage or {}
    return Reply(
        text=text,
        finish_reason=finish_reason,
        token=token,
        top=top,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        ms=ms,
        skip=skip,
    )


def token_text(token: str) -> str:
    """A token without surrounding blanks and tokenizers' marks for them."""
    return token.strip().strip("\u2581\u0120\u010a").strip()


def log_sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def answer_positions(answer: Reply) -> tuple[Position, ...]:
    """The positions that make up the answer's text, without blanks and the end-of-answer token behind it;
    empty where they do not add up to it.
    """
    text, said = answer.text.strip(), ""
    for count, position in enumerate(answer.positions, 1):
        said += position.token
        if len(said) >= len(text) and said.strip() == text:
            return answer.positions[:count]
    return ()
