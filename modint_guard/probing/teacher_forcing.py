"""Teacher forcing: how a view scores the whole answer that was given, in one prefill and without decoding.

The answer stands as the assistant's message at the end of the view, and the engine is asked for the
log-probabilities of its prompt (vLLM's `prompt_logprobs`). The last of them are those of the answer, if the
text was cut into the same tokens again: token ids are compared, or the tokens' texts where there are no ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modint_guard.chat.reply import answer_positions, reply_of, token_text
from modint_guard.errors import EndpointError
from modint_guard.types import JSON, Position, Reply

_NOT_FORCED = ("logprobs", "top_logprobs", "stop", "stop_token_ids")


def forced_body(view: JSON, answer: str, top_logprobs: int) -> JSON:
    """A view with the answer as its last words, every prompt position scored with `top_logprobs`
    alternatives.
    """
    kept = {key: value for key, value in view.items() if key not in _NOT_FORCED}
    return {
        **kept,
        "messages": [*view["messages"], {"role": "assistant", "content": answer}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "prompt_logprobs": top_logprobs,
        "return_token_ids": True,
        "max_tokens": 1,
    }


def answer_text(answer: Reply) -> str:
    """The text of `answer_positions`, as it is to be given to a view. Blanks that end an answer are not among
    these: a prompt that ended in them would be scored at other tokens.
    """
    said = "".join(position.token for position in answer_positions(answer))
    return answer.text.rstrip() + said[len(said.rstrip()) :]


def forced_reply(completion: JSON, ms: float, answer: Reply) -> Reply:
    """The reply to `forced_body` with the answer's positions as the view scores them. Raises EndpointError
    where it holds none, or where the answer was cut into other tokens.
    """
    reply = reply_of(completion, ms)
    try:
        found = _positions(completion, answer_positions(answer))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise EndpointError("The upstream's answer holds no log-probabilities of the prompt.") from exc
    return Reply(
        text=answer.text,
        finish_reason=reply.finish_reason,
        token=None,
        top=None,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cached_tokens=reply.cached_tokens,
        ms=ms,
        forced=found,
    )


def _positions(completion: JSON, wanted: Sequence[Position]) -> tuple[Position, ...]:
    scored: list[dict[str, JSON] | None] = completion["prompt_logprobs"]
    ids: list[int] | None = completion.get("prompt_token_ids")
    if not wanted or len(scored) <= len(wanted):
        raise EndpointError("The answer's tokens are not among those of the prompt.")
    tail = scored[-len(wanted) :]
    own = ids[-len(wanted) :] if ids else [None] * len(wanted)
    found = tuple(_position(entry or {}, known) for entry, known in zip(tail, own, strict=True))
    if not all(_same(ours, theirs) for ours, theirs in zip(wanted, found, strict=True)):
        raise EndpointError("The answer was cut into other tokens than were generated: it cannot be scored.")
    return found


def _position(entry: dict[str, JSON], known: int | None) -> Position:
    """One prompt position. The prompt's own token is named by its id, else it is listed first (vLLM)."""
    key = str(known) if known is not None else next(iter(entry), "")
    top: dict[str, float] = {}
    for item in entry.values():
        token = str(item["decoded_token"])
        top[token] = max(float(item["logprob"]), top.get(token, -float("inf")))
    own: dict[str, Any] = entry[key]
    return Position(str(own["decoded_token"]), float(own["logprob"]), top, int(key))


def _same(generated: Position, scored: Position) -> bool:
    if generated.id is not None and scored.id is not None:
        return generated.id == scored.id
    return token_text(generated.token) == token_text(scored.token)
