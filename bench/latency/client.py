"""A client of the gateway that takes times: of a whole answer, of a stream's first token and last chunk."""

import time
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import orjson

from bench.latency.requests import Request
from modint_guard.errors import EndpointError
from modint_guard.types import JSON

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Told:
    """What came of a request: when its answer was complete with its verdict and, of a stream, when its first
    token came, by `time.perf_counter`; and the `modint` object, empty without one.
    """

    ended: float
    first: float | None
    modint: JSON


Ask = Callable[[Request], Awaitable[Told]]


def asking(session: aiohttp.ClientSession) -> Ask:
    """A function that sends one request. It raises EndpointError for an answer that cannot be counted."""

    async def ask(request: Request) -> Told:
        async with session.post(PATH, data=orjson.dumps(request.body), headers=request.headers) as answer:
            if answer.status != 200:
                raise EndpointError(f"no answer that can be counted: {answer.status}", status=answer.status)
            if request.streamed:
                return await read_stream(answer.content)
            completion = orjson.loads(await answer.read())
            return Told(time.perf_counter(), None, completion.get("modint") or {})

    return ask


async def read_stream(lines: AsyncIterable[bytes]) -> Told:
    """Reads a stream to its end. Raises EndpointError if it breaks off or holds no text."""
    first = told = None
    async for line in lines:
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            continue
        chunk = orjson.loads(data)
        for choice in chunk.get("choices") or ():
            if first is None and (choice.get("delta") or {}).get("content"):
                first = time.perf_counter()
            if choice.get("finish_reason"):
                told = Told(time.perf_counter(), first, chunk.get("modint") or {})
    if told is None or first is None:
        raise EndpointError("a stream ended without a finish or without text: it cannot be counted")
    return told
