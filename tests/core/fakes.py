"""What several tests of the core need: bodies, pictures and scripted models, all plain functions; a model
behind a real socket, and a command as it is called.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from typing import Any

from aiohttp import web
from PIL import Image

from modint_guard import Guard, GuardConfig
from modint_guard.chat.images import neutral_image, png_data_url
from modint_guard.cli import GROUP, main
from modint_guard.judging.calibration import Fitted, Promise
from modint_guard.types import JSON, Complete, Reply

SIZE = (12, 8)
RED = png_data_url(Image.new("RGB", SIZE, (255, 0, 0)))
GREY = neutral_image(SIZE)


def fitted(*, bias: float = -1.0, flag_at: float, **weights: float) -> Fitted:
    """One calibration's risk, fitted on a hundred answers, with a promise about misses at its threshold."""
    return Fitted(
        bias=bias,
        weights={"js": 4.0, "margin": 0.0, "entropy": 0.0, "pmi": 0.0} | weights,
        flag_at=flag_at,
        promises=(Promise(kind="miss", alpha=0.1, flag_at=flag_at, n=40),),
        positives=40,
        negatives=60,
        wrong_on_both=3,
        right_only_when_disturbed=1,
        flagged_of_negatives=0.05,
        feasible_flags=0.1,
        auroc=0.97,
        calibration_error=0.02,
    )


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


def scored_prompt(words: Sequence[str], tops: Sequence[Mapping[str, float]]) -> JSON:
    """The reply to a call that gives the answer: its prompt ends in these words, with probabilities of what
    might stand in the place of each; a word that is not among these has one in a million.
    """
    entries = [
        {
            str(number): {"logprob": math.log(top.get(said, 1e-6)), "decoded_token": said}
            for number, said in enumerate(dict.fromkeys((word, *top)))
        }
        for word, top in zip(words, tops, strict=True)
    ]
    return {**completion("!"), "prompt_logprobs": [None, *entries]}


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


def guarded(complete: Complete) -> Complete:
    """The model behind a guard that scores longer answers as a whole; `modint.mode: off` passes it by."""
    guard = Guard(GuardConfig(teacher_forcing=True))

    async def asked(body: JSON) -> JSON:
        if body["modint"].get("mode") == "off":
            return await complete({key: value for key, value in body.items() if key != "modint"})
        return (await guard.inspect(body, complete)).completion

    return asked


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


@asynccontextmanager
async def serving(complete: Complete) -> AsyncIterator[tuple[str, set[str | None]]]:
    """The address of an endpoint that a model stands behind, and the guard's modes that it is sent."""
    modes: set[str | None] = set()

    async def handle(request: web.Request) -> web.Response:
        modes.add(request.headers.get("x-modint-mode"))
        return web.json_response(await complete(await request.json()))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", modes
    finally:
        await runner.cleanup()


def called(name: str, *arguments: str, module: str | None = None) -> int:
    """The exit code of one of the core's commands; module: where it is, if not in an evaluation's module."""
    where = module or f"modint_guard.evaluation.{name}:command"
    try:
        main([name, *arguments], [EntryPoint(name, where, GROUP)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
