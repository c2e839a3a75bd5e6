"""Teacher forcing: how a view scores a whole answer that was given, in one prefill and without decoding.

The answer is appended to the view as an assistant message, and the engine is asked for the log-probabilities
of its prompt (vLLM's `prompt_logprobs`). The last of these belong to the answer, provided that its text was
split into the same tokens again: token ids are compared, or the tokens' texts if there are no ids. An engine
that can be asked for the last rows alone (`LAST_ROWS`) need not compute those in front of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modint_guard.chat.reply import answer_positions, reply_of, token_text
from modint_guard.chat.token_places import bytes_of
from modint_guard.chat.tool_calls import as_message, as_rendered
from modint_guard.chat.unread import entry
from modint_guard.errors import EndpointError
from modint_guard.types import JSON, Position, Reply

_LONGEST_TOKEN = 256  # bytes
_LONGEST_CALLS = 2048  # tokens at the end of a prompt that tool calls are looked for in
# What changes no probability of a prompt, and costs time: `bad_words` are split into tokens for every call.
_OF_SAMPLING = ("bad_words", "logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty")
_NOT_FORCED = frozenset({"logprobs", "top_logprobs", "stop", "stop_token_ids", *_OF_SAMPLING})
LAST_ROWS = "modint_last_rows"  # in `vllm_xargs`: so many of a prompt's last log-probabilities are wanted


def forced_body(view: JSON, answer: str, top_logprobs: int, last_rows: int | None = None) -> JSON:
    """A body that makes the engine score `answer` under a view: the view with the answer as its last message.

    top_logprobs: the number of alternatives asked for at each position of the prompt. last_rows: of how many
    of its last tokens; None for all, and where the engine cannot be asked for some.
    """
    message = {"role": "assistant", "content": answer}
    return {**_scoring(view, message, top_logprobs, last_rows), "continue_final_message": True}


def called_body(view: JSON, answer: Reply, top_logprobs: int, *, last_rows: bool = False) -> JSON:
    """A body that makes the engine score tool calls as the model's template writes them: the view with the
    calls as its last message, which is not gone on with. last_rows: whether it can be asked for the end.
    """
    return _scoring(view, as_message(answer), top_logprobs, _LONGEST_CALLS if last_rows else None)


def most_tokens(text: str) -> int:
    """The most tokens that a text can be split into: each has a byte of it, but for white space in front."""
    return len(text.encode(errors="replace")) + 1


def _scoring(view: JSON, message: JSON, top_logprobs: int, last_rows: int | None) -> JSON:
    kept = {key: value for key, value in view.items() if key not in _NOT_FORCED}
    if last_rows is not None:
        kept["vllm_xargs"] = {LAST_ROWS: last_rows}
    return {
        **kept,
        "messages": [*view["messages"], message],
        "add_generation_prompt": False,
        "prompt_logprobs": top_logprobs,
        "return_token_ids": True,
        "max_tokens": 1,
    }


def answer_text(answer: Reply) -> str:
    """The text of an answer as it is given to a view: the tokens of `answer_positions`.

    White space at the end of the answer that is not part of these tokens is left out: with it, the prompt
    would be split into other tokens.
    """
    text = "".join(position.token for position in answer_positions(answer))
    return answer.text.rstrip() + text[len(text.rstrip()) :]


def forced_reply(completion: JSON, ms: float, answer: Reply, *, by_text: bool = False) -> Reply:
    """The reply to `forced_body`: its `forced` holds the answer's positions as the view scores them.

    ms: the duration of the call in milliseconds. by_text: whether the answer may be split into other tokens
    than were generated, as that of a grammar often is, which leaves the model other tokens than its own. Then
    the request's side must be scored in the same way. Raises EndpointError if the completion holds no
    log-probabilities of the prompt, or if the answer was split otherwise.
    """
    reply = reply_of(completion, ms)
    try:
        if by_text:
            scored = _positions_of_text(completion, answer_text(answer))
        else:
            scored = _positions(completion, answer_positions(answer))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise EndpointError("The upstream's answer holds no log-probabilities of the prompt.") from exc
    return _given(reply, answer, scored)


def called_reply(completion: JSON, ms: float, answer: Reply) -> Reply:
    """The reply to `called_body`: its text, `leaves` and `forced` are those of the calls as the template
    wrote them (`as_rendered`). It is to be skipped, `tool_calls`, if their values are not found in the
    prompt. Raises EndpointError if the completion holds no log-probabilities of the prompt.
    """
    reply = reply_of(completion, ms)
    try:
        count = min(len(completion["prompt_logprobs"]) - 1, _LONGEST_CALLS)
        found = as_rendered(answer, _last_of(completion, count))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise EndpointError("The upstream's answer holds no log-probabilities of the prompt.") from exc
    if found is None:
        return replace(_given(reply, answer, ()), skip="tool_calls")
    return replace(_given(reply, found, found.positions), leaves=found.leaves)


def with_first_word(reply: Reply) -> Reply:
    """A reply that scored an answer, with what it says of the answer's first word as if it had begun one."""
    first = first_word(reply.forced)
    return replace(reply, token=first.token, top=first.top)


def first_word(positions: Sequence[Position]) -> Position:
    """The first of one or more positions that is more than white space; the very first if none is."""
    return next((each for each in positions if token_text(each.token)), positions[0])


def _given(reply: Reply, answer: Reply, scored: tuple[Position, ...]) -> Reply:
    """The reply of a view that was given an answer."""
    return replace(
        reply,
        text=answer.text,
        finish_reason="length",  # it was not the view that ended this answer
        token=None,
        top=None,
        skip=None,
        positions=(),
        forced=scored,
    )


def _positions(completion: JSON, generated: Sequence[Position]) -> tuple[Position, ...]:
    """The last positions of the prompt, as many as were generated."""
    count = len(generated)
    if not count or len(completion["prompt_logprobs"]) <= count:
        raise EndpointError("The answer's tokens are not among those of the prompt.")
    scored = _last_of(completion, count)
    if not all(_is_same_token(a, b) for a, b in zip(generated, scored, strict=True)):
        raise EndpointError(
            "The answer was split into other tokens than were generated: it cannot be scored."
        )
    return scored


def _positions_of_text(completion: JSON, text: str) -> tuple[Position, ...]:
    """The last positions of the prompt that together are the text, however it was split."""
    listed: list[Any] = completion["prompt_logprobs"]
    ids: list[int] | None = completion.get("prompt_token_ids")
    sought, joined = text.strip(), b""
    least = len(sought.encode(errors="replace"))
    for count in range(1, len(listed)):
        position = _position(listed[-count], ids[-count] if ids else None)
        joined = bytes_of(position) + joined
        if len(joined) >= least and joined.decode(errors="replace").strip() == sought:
            return _last_of(completion, count)
        if len(joined) > least + _LONGEST_TOKEN:
            break
    raise EndpointError("The answer is not at the end of the prompt: it cannot be scored.")


def _last_of(completion: JSON, count: int) -> tuple[Position, ...]:
    """The last positions of the prompt, one or more."""
    listed: list[Any] = completion["prompt_logprobs"]
    ids: list[int] | None = completion.get("prompt_token_ids")
    last = zip(listed[-count:], ids[-count:] if ids else [None] * count, strict=True)
    return tuple(_position(each, id_) for each, id_ in last)


def _position(listed: Any, token_id: int | None) -> Position:
    """One prompt position. The prompt's own token has this id; if it is not known, vLLM lists it first."""
    by_id: dict[str, JSON] = entry(listed) or {}
    key = str(token_id) if token_id is not None else next(iter(by_id), "")
    top: dict[str, float] = {}
    for alternative in by_id.values():
        token = str(alternative["decoded_token"])
        top[token] = max(float(alternative["logprob"]), top.get(token, -float("inf")))
    prompt_token: dict[str, Any] = by_id[key]
    return Position(str(prompt_token["decoded_token"]), float(prompt_token["logprob"]), top, int(key))


def _is_same_token(generated: Position, scored: Position) -> bool:
    if generated.id is not None and scored.id is not None:
        return generated.id == scored.id
    return token_text(generated.token) == token_text(scored.token)
