"""Server-sent events as bytes: cuts a stream into events unchanged, reads their data, writes new ones."""

import re
from collections.abc import AsyncIterator, Iterator

from modint_guard.chat.unread import dumps
from modint_guard.errors import EndpointError
from modint_guard.types import JSON
from modint_server.engine.upstream import json_object

DONE = b"data: [DONE]\n\n"
COMMENT = b":\n\n"
MAX_EVENT_BYTES = 64 * 2**20  # the last event of a response holds the log-probabilities of 32,000 tokens
_LONGEST_DONE = 1024  # bytes, with comments
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class BrokenStreamError(EndpointError):
    """The engine's stream is damaged: an event that is too long, or an end before that of the answer."""


class Splitter:
    """Collects the pieces of a stream and cuts them into whole events, with the blank line at their end."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events that are complete with this piece; raises BrokenStreamError if one is too long."""
        self._rest += data
        while end := _END.search(self._rest, self._searched):
            event = bytes(self._rest[: end.end()])
            del self._rest[: end.end()]
            self._searched = 0
            yield event
        self._searched = max(
            0, len(self._rest) - 3
        )  # a blank line may begin in one piece and end in the next
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BrokenStreamError(f"an event of the upstream is longer than {MAX_EVENT_BYTES} bytes")

    def rest(self) -> bytes | None:
        """What came after the last whole event, as an event; None if it holds no data."""
        rest = bytes(self._rest).rstrip(b"\r\n")
        return None if data_of(rest) is None or is_blank(rest) else rest + b"\n\n"


async def events_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events of a stream up to [DONE], or to its end if that never comes."""
    splitter = Splitter()
    async for piece in pieces:
        for event in splitter.feed(piece):
            yield COMMENT if is_blank(event) else event
            if is_done(event):
                return
    if (rest := splitter.rest()) is not None:
        yield rest


class Choices:
    """Which answers of a stream have begun, and which have ended: some engines send no [DONE] after them."""

    def __init__(self) -> None:
        self._begun: set[str] = set()
        self._ended: set[str] = set()

    def feed(self, chunk: JSON) -> None:
        """Notes the choices of one chunk."""
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                index = str(choice.get("index", 0))
                self._begun.add(index)
                self._ended |= {index} if choice.get("finish_reason") else set()

    def check_ended(self) -> None:
        """Raises BrokenStreamError unless an answer has begun, and every one has ended."""
        if not self._begun or self._begun - self._ended:
            raise BrokenStreamError("the engine ended the stream before its answer was whole")


def data_of(event: bytes) -> bytes | None:
    """The data of an event, its lines joined; None for a comment or an event without data."""
    lines = [line[5 + line.startswith(b"data: ") :] for line in event.splitlines() if line[:5] == b"data:"]
    return b"\n".join(lines) if lines else None


def is_blank(event: bytes) -> bool:
    """Whether an event has data, and these are nothing: a sign of life that clients would read as JSON."""
    data = data_of(event) if len(event) < _LONGEST_DONE else None
    return data is not None and not data.strip()


def is_done(event: bytes) -> bool:
    """Whether an event is [DONE], the end of the stream."""
    return len(event) < _LONGEST_DONE and data_of(event) == b"[DONE]"


def chunk_of(data: bytes) -> JSON:
    """The JSON object in an event's data; raises EndpointError if it holds something else."""
    return json_object(data, "the data of an event")


def frame(chunk: JSON) -> bytes:
    """An event with this data."""
    return b"data: " + dumps(chunk) + b"\n\n"
