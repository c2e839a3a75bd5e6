"""POST /v1/messages, Anthropic's API: judged by way of chat, or passed through as it is.

vLLM gives no log-probabilities with a message. What is judged is therefore asked at the engine's chat, by
which vLLM itself answers messages; what is not judged goes to the engine's own route.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import orjson

from modint_guard.chat.anthropic import MessageEvents, chat_of, message_of
from modint_guard.chat.body import parts_of
from modint_guard.judge import skipped
from modint_guard.types import JSON
from modint_server.engine.upstream import json_object
from modint_server.errors import ErrorAnswer
from modint_server.request import annotate
from modint_server.request.exchange import Record, Wire
from modint_server.request.intake import DefaultModel, Incoming, keyed_by_gain
from modint_server.request.passing import Work, forward, read_passed
from modint_server.request.pipeline import Pipeline
from modint_server.request.sse import Splitter, chunk_of, data_of
from modint_server.settings import Settings

ROUTE = "/v1/messages"


@dataclass(frozen=True)
class Messages:
    """How such requests are answered, by the stages of `Pipeline`."""

    pipeline: Pipeline

    def answer_to(self, path: str) -> Work:
        """The work of one request, whole or streamed."""

        async def work(raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
            incoming = await self.pipeline.read(self._read, raw, record)
            record.stream, record.images = incoming.stream, incoming.images
            async with self.pipeline.attachment.serving(incoming.body["model"]) as record.served:
                if path == ROUTE:
                    await self._answer(incoming, headers, record, wire)
                else:
                    await self._pass(path, incoming, record, wire)

        return work

    def _read(self, document: Incoming, settings: Settings, default_model: DefaultModel) -> Incoming:
        limits = self.pipeline.guard.config.image_limits
        return keyed_by_gain(read_passed(document, settings, default_model, limits=limits), settings)

    async def _answer(
        self, incoming: Incoming, headers: Mapping[str, str], record: Record, wire: Wire
    ) -> None:
        pipeline = self.pipeline
        asked = await pipeline.done(partial(as_chat, incoming), incoming.size, record)
        debug = headers.get("x-modint-debug", "").lower() == "true"
        plan = await pipeline.plan(asked, headers, record)
        if plan is None or plan.skip is not None:
            record.report = skipped(plan) if plan else record.report
        elif reason := pipeline.reason_not_probed(plan, record):
            record.report = pipeline.without_verdict(plan, reason)
            if record.report.mitigation is not None:
                await wire.respond(annotate.withheld(record.report, debug=debug))
                return
        else:
            wire.translation = Translation()
            await pipeline.guarded(plan, asked, record, wire, debug)
            return
        told = annotate.headers_of(record.report, debug=debug) if record.report else {}
        await self._pass(ROUTE, incoming, record, wire, told)

    async def _pass(
        self, path: str, incoming: Incoming, record: Record, wire: Wire, told: dict[str, str] | None = None
    ) -> None:
        body = incoming.without_modint().bytes()
        await forward(self.pipeline.upstream, path, body, record, wire, told=told)


class Translation:
    """What goes to a client of messages, made of what would go to one of chat."""

    def __init__(self) -> None:
        self._events, self._splitter = MessageEvents(), Splitter()

    def whole(self, body: bytes) -> bytes:
        """A completion as a message."""
        return orjson.dumps(message_of(json_object(body)))

    def pieces(self, data: bytes) -> bytes:
        """Chunks as events."""
        return b"".join(map(_frame, self._of(data)))

    def last(self, data: bytes) -> bytes:
        """The last events."""
        return self.pieces(data) + b"".join(map(_frame, self._events.end()))

    def failure(self, failure: ErrorAnswer) -> bytes:
        """An error in a stream."""
        return _frame({"type": "error", **failure.envelope()})

    def _of(self, data: bytes) -> Iterator[JSON]:
        for event in self._splitter.feed(data):
            text = data_of(event)
            if text is not None and text != b"[DONE]":
                yield from self._events.feed(chunk_of(text))


def as_chat(incoming: Incoming) -> Incoming:
    """The same request as a chat body."""
    chat = chat_of(incoming.body)
    images = sum(1 for part in parts_of(chat["messages"]) if "image_url" in part)
    return Incoming(chat, None, images, incoming.size)


def _frame(event: JSON) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
