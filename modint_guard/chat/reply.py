"""Read a completion: its text, its tokens, and the alternatives at its first content position.

What a model wrote between <think> and </think> or the like, or in its field for reasoning, is no part of the
answer.

The first content position is that of the first generated token that is more than white space. A view is asked
for a token or two only, so it shows no more than the first word of a longer answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

from modint_guard.chat.thoughts import DEFAULT_EMPTY, behind_thoughts, empty_thought
from modint_guard.chat.token_places import bytes_of
from modint_guard.chat.tool_calls import Calls
from modint_guard.chat.unread import changed, entries
from modint_guard.errors import EndpointError
from modint_guard.types import JSON, Position, Reply, TokenOptions

MAX_TOKENS = 2**31  # of one call; an engine that reports more is wrong
_UNFINISHED = 3  # signs that may stand for one that is not complete yet


_UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def reply_of(completion: JSON, ms: float = 0.0) -> Reply:
    """The first choice of a whole chat completion that took `ms` milliseconds. Raises EndpointError if the
    object is not a chat completion.
    """
    try:
        return _read(completion, ms)
    except _UNREADABLE as exc:
        raise EndpointError("The upstream's answer is not a chat completion of OpenAI's shape.") from exc


def given_reply(given: str | JSON) -> Reply:
    """An answer from elsewhere as a reply without tokens: its text, or the assistant's message that it is.
    Raises EndpointError if the message is not of OpenAI's shape.
    """
    message = {"content": given} if isinstance(given, str) else given
    return reply_of({"choices": [{"message": message, "finish_reason": "stop"}]})


def answers_of(completion: JSON, count: int) -> list[Reply]:
    """The answers of a whole chat completion to a request that asks for so many. Raises EndpointError."""
    return replies_of(completion) if count > 1 else [reply_of(completion)]


def replies_of(completion: JSON) -> list[Reply]:
    """Each choice of a whole chat completion, in order. Raises EndpointError as `reply_of` does."""
    choices = completion.get("choices")
    listed = choices if isinstance(choices, list) else []
    return [reply_of({**completion, "choices": [choice]}) for choice in listed]


def _read(completion: JSON, ms: float) -> Reply:
    choices = completion.get("choices") or [{}]
    choice = choices[0]
    message = choice.get("message") or {}
    listed = (choice.get("logprobs") or {}).get("content")
    token, top = _first_content(listed)
    text = _text(message.get("content"))
    skip = "multiple_choices" if len(choices) > 1 else _skip(message)
    reply = _reply(text, choice.get("finish_reason"), token, top, usage_of(completion), ms, skip)
    calls = Calls()
    calls.feed(message)
    positions = tuple(_positions(listed, choice.get("token_ids")))
    reply = replace(reply, positions=positions, calls=calls.all())
    return _behind_reasoning(reply, apart=_has_reasoning(message))


class StreamReply:
    """Collects a `Reply` from the chunks of a stream: `feed` each one, then call `reply`.

    index: which choice is read, if the request asks for several; None if it asks for one, and gets one.
    """

    def __init__(self, index: int | None = None) -> None:
        self._index = index
        self._text: list[str] = []
        self._token: str | None = None
        self._top: dict[str, float] | None = None
        self._positions: list[Position] = []
        self._finish_reason: str | None = None
        self._usage = Usage()
        self._skip: str | None = None
        self._reasons_apart = False
        self._calls = Calls()
        self._problem: Exception | None = None

    @property
    def tokens(self) -> int:
        """How many tokens with alternatives there are so far."""
        return len(self._positions)

    def feed(self, chunk: JSON) -> None:
        """Add one `chat.completion.chunk` object. One that cannot be read makes `reply` raise."""
        try:
            self._feed(chunk)
        except _UNREADABLE as exc:
            self._problem = exc

    def _feed(self, chunk: JSON) -> None:
        if chunk.get("usage"):
            self._usage = usage_of(chunk)
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) != (self._index or 0):
                if self._index is None:
                    self._skip = self._skip or "multiple_choices"
                continue
            delta = choice.get("delta") or {}
            self._text.append(_text(delta.get("content")))
            self._skip = self._skip or _skip(delta)
            self._calls.feed(delta)
            self._reasons_apart = self._reasons_apart or _has_reasoning(delta)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            listed = (choice.get("logprobs") or {}).get("content")
            self._positions.extend(_positions(listed, choice.get("token_ids")))
            if self._token is None:
                self._token, self._top = _first_content(listed)

    def reply(self, ms: float = 0.0) -> Reply:
        """The reply as far as the chunks go, with `ms` milliseconds as its duration. Raises EndpointError for
        a chunk of another shape than OpenAI's.
        """
        if self._problem is not None:
            raise EndpointError("A chunk of the answer is not of OpenAI's shape.") from self._problem
        text = "".join(self._text)
        reply = _reply(text, self._finish_reason, self._token, self._top, self._usage, ms, self._skip)
        reply = replace(reply, positions=tuple(self._positions), calls=self._calls.all())
        return _behind_reasoning(reply, apart=self._reasons_apart)


class Usage(NamedTuple):
    """The tokens of one call; `cached_tokens` are those of the prompt that the engine had computed before."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


def usage_of(completion: JSON) -> Usage:
    """The tokens that a completion or chunk reports; 0 for missing numbers and for those no call can cost."""
    usage = _object(completion.get("usage"))
    return Usage(
        prompt_tokens=_tokens(usage.get("prompt_tokens")),
        completion_tokens=_tokens(usage.get("completion_tokens")),
        cached_tokens=_tokens(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )


def _object(value: Any) -> JSON:
    return value if isinstance(value, dict) else {}


def _tokens(value: Any) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value <= MAX_TOKENS else 0


def strip_added(completion: JSON, wanted: TokenOptions) -> JSON:
    """A copy of a completion or chunk without log-probabilities and token ids that only the guard wanted."""
    if not wanted.token_ids:
        completion = _without_token_ids(completion)
    choices = completion.get("choices")
    if not choices or not any(choice.get("logprobs") for choice in choices):
        return completion
    return {**completion, "choices": [_stripped(choice, wanted) for choice in choices]}


def _without_token_ids(completion: JSON) -> JSON:
    if completion.get("prompt_token_ids") is not None:
        completion = {**completion, "prompt_token_ids": None}
    choices = completion.get("choices") or ()
    if any(choice.get("token_ids") is not None for choice in choices):
        stripped = [{**choice, "token_ids": None} if "token_ids" in choice else choice for choice in choices]
        completion = {**completion, "choices": stripped}
    return completion


def _stripped(choice: JSON, wanted: TokenOptions) -> JSON:
    logprobs = choice.get("logprobs")
    if not logprobs:
        return choice
    if not wanted.logprobs:
        return {**choice, "logprobs": None}
    return {**choice, "logprobs": {**logprobs, "content": shortened(logprobs.get("content"), wanted)}}


def shortened(listed: Any, wanted: TokenOptions) -> list[Any]:
    """Entries of log-probabilities with no more alternatives than the client asked for."""
    count = wanted.top_logprobs
    return changed(listed, lambda entry: {**entry, "top_logprobs": (entry.get("top_logprobs") or [])[:count]})


def _first_content(listed: Any) -> tuple[str | None, dict[str, float] | None]:
    """The token at the first content position and its alternatives, None if its entry lists none."""
    for entry in entries(listed):
        if str(entry.get("token") or "").strip(" \t\r\n\u2581\u0120\u010a"):
            alternatives = entry.get("top_logprobs") or []
            return str(entry["token"]), _alternatives(entry, alternatives) if alternatives else None
    return None, None


def _positions(listed: Any, ids: Any) -> Iterator[Position]:
    """Every token that has alternatives, with its id if there is one for each entry."""
    count = len(listed or ())
    token_ids = ids if isinstance(ids, list) and len(ids) == count else [None] * count
    for entry, id_ in zip(entries(listed), token_ids, strict=True):
        if alternatives := entry.get("top_logprobs"):
            yield Position(
                str(entry["token"]),
                float(entry["logprob"]),
                _alternatives(entry, alternatives),
                id_,
                _bytes(entry.get("bytes")),
            )


def _bytes(listed: Any) -> bytes | None:
    """The bytes of a token; None if the engine lists none that are."""
    try:
        return bytes(listed) if isinstance(listed, list) else None
    except (TypeError, ValueError):
        return None


def _alternatives(entry: JSON, alternatives: list[JSON]) -> dict[str, float]:
    """Log-probabilities by token text. The probabilities of different tokens with the same text (bytes that
    do not make a character) are added up.
    """
    top: dict[str, float] = {}
    for item in alternatives:
        token, logprob = str(item["token"]), float(item["logprob"])
        top[token] = log_sum(top[token], logprob) if token in top else logprob
    top.setdefault(str(entry["token"]), float(entry["logprob"]))  # a sampled token may lie outside the top k
    return top


def _skip(message: Mapping[str, Any]) -> str | None:
    """The reason from SKIPPED_REASONS for an answer that is not plain text; None for one that is."""
    if message.get("tool_calls") or message.get("function_call"):
        return "tool_calls"
    if message.get("refusal"):
        return "refusal"
    return "audio" if message.get("audio") else None


def _has_reasoning(message: Mapping[str, Any]) -> bool:
    return bool(message.get("reasoning_content") or message.get("reasoning"))


def _behind_reasoning(reply: Reply, *, apart: bool) -> Reply:
    """The reply without its reasoning; one that is nothing else, or empty, is to be skipped.

    apart: whether the reasoning came in a field of its own, so that the text is the answer's alone.
    """
    text = reply.text if apart else behind_thoughts(reply.text)
    written, said = reply.text, text
    if reply.calls:  # the engine took them out of the text
        written = b"".join(map(bytes_of, reply.positions)).decode(errors="replace")
        said = behind_thoughts(written)
    if not apart and (text, said) == (reply.text, written):
        return reply if text.strip() else replace(reply, skip=reply.skip or "empty_answer")
    ends = not reply.calls or said != written  # else it is not known where the reasoning does
    positions = _last_positions(reply.positions, said) if ends else ()
    first = next((each for each in positions if token_text(each.token)), None)
    return replace(
        reply,
        text=text if apart else text.lstrip(),
        start=0 if apart else len(reply.text) - len(text.lstrip()),
        token=first.token if first else None,
        top=first.top if first else None,
        positions=positions,
        skip=reply.skip or (None if text.strip() else "reasoning"),
        reasoning=True,
        empty_thought=empty_thought(written) or (DEFAULT_EMPTY if apart else None),
    )


def _last_positions(positions: tuple[Position, ...], text: str) -> tuple[Position, ...]:
    """The positions from the last occurrence of a text on; empty if it begins within a token."""
    joined, sought = b"".join(map(bytes_of, positions)), text.strip().encode(errors="replace")
    start, at = joined.rfind(sought), 0
    for index, position in enumerate(positions):
        behind = at + len(bytes_of(position))
        if sought and at <= start < behind:
            return positions[index:] if not joined[at:start].strip() else ()
        at = behind
    return ()


def _text(content: Any) -> str:
    return content if isinstance(content, str) else ""


def _reply(
    text: str,
    finish_reason: str | None,
    token: str | None,
    top: dict[str, float] | None,
    usage: Usage,
    ms: float,
    skip: str | None,
) -> Reply:
    return Reply(
        text=text,
        finish_reason=finish_reason,
        token=token,
        top=top,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        ms=ms,
        skip=skip,
    )


def token_text(token: str) -> str:
    """A token's text without the white space around it and without tokenizers' signs for white space."""
    return token.strip().strip("\u2581\u0120\u010a").strip()


def log_sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), for any finite a and b."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def answer_positions(answer: Reply) -> tuple[Position, ...]:
    """The positions whose tokens make up the answer's text, without white space and the end-of-answer token
    after it. Empty if the tokens do not add up to the text.
    """
    text, pieces = answer.text.strip(), [bytes_of(position) for position in answer.positions]
    joined, least = b"".join(pieces), len(answer.text.strip().encode(errors="replace"))
    for count, end in enumerate(accumulate(map(len, pieces)), 1):
        if end < least:
            continue
        said = joined[:end].decode(errors="replace").strip()
        if said == text:
            return answer.positions[:count]
        if len(said) > len(text) + _UNFINISHED:
            break
    return ()
