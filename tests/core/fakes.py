"""What several tests of the core need: bodies, pictures and scripted models, all plain functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from modint_guard.images import neutral_image, png_data_url
from modint_guard.types import JSON, Complete, Reply

SIZE = (12, 8)
RED = png_data_url(Image.new("RGB", SIZE, (255, 0, 0)))
GREY = neutral_image(SIZE)


def image_part(url: str = RED) -> JSON:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> JSON:
    return {"type": "text", "text": text}


def ask(*texts: str, images: int = 1, **fields: Any) -> JSON:
    """A chat body with the pictures first, then one text part for each text."""
    content = [*(image_part() for _ in range(images)), *(text_part(text) for text in texts)]
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


def completion(text: str, tops: Sequence[Mapping[str, float]] | None = None, **message: Any) -> JSON:
    """A chat completion; `tops` are probabilities by token, one map for each generated token."""
    logprobs = None if tops is None else {"content": [_entry(top) for top in tops]}
    return {
        "id": "c",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": "stop",
                "logprobs": logprobs,
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 1,
            "total_tokens": 31,
            "prompt_tokens_details": {"cached_tokens": 16},
        },
    }


def _entry(top: Mapping[str, float]) -> JSON:
    entries: list[JSON] = [
        {"token": token, "logprob": math.log(p), "bytes": None} for token, p in top.items()
    ]
    best = max(entries, key=lambda entry: entry["logprob"])
    return {**best, "top_logprobs": sorted(entries, key=lambda entry: -entry["logprob"])}


def reply(text: str, **probabilities: float) -> Reply:
    """A one-word reply with the given probabilities at its only position."""
    return Reply(
        text=text,
        finish_reason="stop",
        token=text,
        top={token: math.log(p) for token, p in probabilities.items()},
        prompt_tokens=30,
        completion_tokens=1,
    )


def sees_picture(body: JSON) -> bool:
    content = body["messages"][-1]["content"]
    return any(part.get("image_url", {}).get("url") == RED for part in content)


def reads(body: JSON, words: str) -> bool:
    return any(words in part.get("text", "") for part in body["messages"][-1]["content"])


def world(
    both: str, image: str, text: str, neither: str, lie: str = "blue.", sure: float = 0.99996
) -> Complete:
    """A model that answers by what it sees and whether it reads `lie`."""

    async def complete(body: JSON) -> JSON:
        seen, read = sees_picture(body), reads(body, lie)
        said = both if seen and read else image if seen else text if read else neither
        words = dict.fromkeys(("red", "blue", "green", "round"), (1 - sure) / 4) | {said: sure}
        return completion(said, [words])

    return complete
