"""An engine that answers at once with fixed bytes: `python -m bench.gateway.engine PORT`.

It has log-probabilities where they are asked for, and is quick enough that what stands before it is measured.
"""

import asyncio
import json
import math
import re
import sys
from contextlib import suppress

from modint_guard.types import JSON

MODEL = "bench"
WORDS = ("blue", "red", *(f"word{number}" for number in range(18)))
_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)


def completion(*, logprobs: bool) -> JSON:
    """An answer of one word; with the 20 most probable ones if `logprobs`."""
    listed = [
        {"token": word, "logprob": math.log(0.9 if number == 0 else 0.005), "bytes": list(word.encode())}
        for number, word in enumerate(WORDS)
    ]
    entry = {**listed[0], "top_logprobs": listed}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": WORDS[0]},
        "finish_reason": "stop",
        "logprobs": {"content": [entry]} if logprobs else None,
    }
    usage = {"prompt_tokens": 600, "completion_tokens": 1, "total_tokens": 601}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
    return {**head, "choices": [choice], "usage": usage}


def _response(document: JSON) -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


PLAIN, LISTED = (_response(completion(logprobs=logprobs)) for logprobs in (False, True))
MODELS = _response(
    {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "parent": None}]}
)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the requests of one connection."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            found = _LENGTH.search(head)
            body = await reader.readexactly(int(found[1])) if found else b""
            asks = b'"logprobs"' in body[-400:] or b'"logprobs"' in body[:400]
            writer.write(MODELS if head.startswith(b"GET") else LISTED if asks else PLAIN)
            await writer.drain()
    writer.close()


async def serve(port: int) -> None:
    """Answers on a port of the loopback interface until the process ends."""
    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=8 * 2**20)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
