"""A local model as a `Complete`: an OpenAI chat body in, a completion with log-probabilities out.

Greedy, one request at a time and without a key-value cache: correct for any model family that can be trained
here, and meant for answers of a few tokens.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from modint_guard.chat.images import decode_data_url
from modint_guard.data.item import Item, Turn
from modint_guard.errors import RequestError
from modint_guard.types import JSON, Complete
from modint_training.data.collate import Encoded, collate, encode, on_device
from modint_training.method.labels import IGNORED

MAX_TOKENS = 16  # of an answer, if the request names no number


def complete_of(model: nn.Module, processor: Any) -> Complete:
    """The model as an async function that runner and guard can call; it raises RequestError for requests that
    it does not support."""
    model.eval()

    async def complete(body: JSON) -> JSON:
        return completion(model, processor, body)

    return complete


def completion(model: nn.Module, processor: Any, body: JSON) -> JSON:
    """One greedy chat completion; `logprobs` and `top_logprobs` as in OpenAI's API, without its limit on
    their number."""
    row = encode(item_of(body), processor)
    tokenizer = processor.tokenizer
    prompt = row.ids[: len(row.ids) - row.answer_length]
    answer: list[int] = []
    content: list[JSON] = []
    finish = "length"
    for _ in range(int(body.get("max_tokens") or MAX_TOKENS)):
        logprobs = _next_logprobs(model, processor, row, [*prompt, *answer])
        token = int(logprobs.argmax())
        if token == tokenizer.eos_token_id:
            finish = "stop"
            break
        answer.append(token)
        content.append(_entry(tokenizer, logprobs, token, int(body.get("top_logprobs") or 0)))
    message = {"role": "assistant", "content": tokenizer.decode(answer, skip_special_tokens=True)}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": content}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(answer)}
    return {"object": "chat.completion", "model": body.get("model"), "choices": [choice], "usage": usage}


def item_of(body: JSON) -> Item:
    """The body's chat as an item: the text parts of a message joined by newlines, as the engine's chat
    template joins them, and at most one picture. Raises RequestError for sampling, several pictures, and a
    chat that does not end with the user."""
    messages = body.get("messages") or []
    system = [message for message in messages[:1] if message.get("role") == "system"]
    turns = messages[len(system) :]
    if [turn.get("role") for turn in turns] != _alternating(len(turns)) or body.get("temperature"):
        raise RequestError(
            "a local model answers at temperature 0, and only chats of user and assistant in turn that end "
            "with the user; serve it for other chats and for sampling"
        )
    pictures = [url for message in messages for url in _pictures(message)]
    if len(pictures) > 1:
        raise RequestError(f"a local model takes one picture, not {len(pictures)}; serve it for more")
    return Item(
        "asked",
        "unknown",
        "",
        "free",
        _text(turns[-1]),
        image=decode_data_url(pictures[0]) if pictures else None,
        system=_text(system[0]) if system else "",
        turns=tuple(Turn(turn["role"], _text(turn), bool(_pictures(turn))) for turn in turns[:-1]),
    )


def _alternating(count: int) -> list[str]:
    """The roles of a chat of `count` turns, the user last; at least one turn."""
    roles = ("user", "assistant")
    return [roles[(count - 1 - place) % 2] for place in range(max(1, count))]


def _parts(message: JSON) -> list[JSON]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _pictures(message: JSON) -> list[str]:
    return [part["image_url"]["url"] for part in _parts(message) if part["type"] == "image_url"]


def _text(message: JSON) -> str:
    return "\n".join(part["text"] for part in _parts(message) if part["type"] == "text")


@torch.no_grad()
def _next_logprobs(model: nn.Module, processor: Any, row: Encoded, ids: list[int]) -> Tensor:
    """Log-probabilities of the next token  # (V,) float32, on the CPU."""
    rows = [Encoded(ids, [IGNORED] * len(ids), row.image, text=row.text)]
    inputs = on_device(collate(rows, processor).inputs, next(model.parameters()).device)
    return model(**inputs, use_cache=False).logits[0, -1].float().log_softmax(-1).cpu()


def _entry(tokenizer: Any, logprobs: Tensor, token: int, top: int) -> JSON:
    values, ids = logprobs.topk(min(top, len(logprobs)))
    alternatives = zip(ids.tolist(), values.tolist(), strict=True)
    return {
        "token": _text_of(tokenizer, token),
        "logprob": float(logprobs[token]),
        "top_logprobs": [
            {"token": _text_of(tokenizer, each), "logprob": value} for each, value in alternatives
        ],
    }


@lru_cache(maxsize=1 << 18)  # a diagnosis asks for up to 1000 of them at every step
def _text_of(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token]))
