"""Sends one request over and over: `python -m bench.gateway.load URL BODY SECONDS CONNECTIONS`.

Prints a JSON object: `n` answers, `seconds`, and `ms`, the time of each. Raises ValueError for an answer that
is not 200.
"""

import asyncio
import contextlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATH = "/v1/chat/completions"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)


async def client(address: tuple[str, int], request: bytes, until: float, ms: list[float]) -> None:
    """Asks on one connection, one request after the other."""
    reader, writer = await asyncio.open_connection(*address)
    with contextlib.closing(writer):
        while time.perf_counter() < until:
            began = time.perf_counter()
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            found = _LENGTH.search(head)
            if b" 200 " not in head.partition(b"\r\n")[0] or found is None:
                raise ValueError(f"no answer that can be counted: {head[:200]!r}")
            await reader.readexactly(int(found[1]))
            ms.append(1000 * (time.perf_counter() - began))


async def loaded(url: str, body: bytes, seconds: float, connections: int) -> dict[str, Any]:
    """Asks on so many connections at once for so long."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer sk-bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    ms: list[float] = []
    began = time.perf_counter()
    asking = client((parts.hostname, parts.port), head.encode() + body, began + seconds, ms)
    others = (
        client((parts.hostname, parts.port), head.encode() + body, began + seconds, ms)
        for _ in range(connections - 1)
    )
    await asyncio.gather(asking, *others)
    return {"n": len(ms), "seconds": time.perf_counter() - began, "ms": ms}


if __name__ == "__main__":
    where, file, seconds, connections = sys.argv[1:5]
    measured = loaded(where, Path(file).read_bytes(), float(seconds), int(connections))
    print(json.dumps(asyncio.run(measured)))
