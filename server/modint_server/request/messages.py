"""POST /v1/messages, Anthropic's API: checked like chat and passed through, each answer marked as not judged.

vLLM gives no log-probabilities there, by which an answer could be compared with its views.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from modint_guard.chat.options import parse_options
from modint_guard.judge import skipped_unread
from modint_server.request import annotate
from modint_server.request.exchange import Record, Wire
from modint_server.request.intake import Incoming
from modint_server.request.passing import Work, forward, read_passed
from modint_server.request.pipeline import Pipeline

ROUTE = "/v1/messages"


@dataclass(frozen=True)
class Messages:
    """How such requests are answered, by what `Pipeline` stands on."""

    pipeline: Pipeline

    def answer_to(self, path: str) -> Work:
        """The work of one request, whole or streamed."""

        async def work(raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
            read = partial(read_passed, limits=self.pipeline.guard.config.image_limits)
            incoming = await self.pipeline.read(read, raw, record)
            record.stream, record.images = incoming.stream, incoming.images
            async with self.pipeline.attachment.serving(incoming.body["model"]) as record.served:
                told = self._told(incoming, headers, record) if path == ROUTE else {}
                body = incoming.without_modint().bytes()
                await forward(self.pipeline.upstream, path, body, record, wire, told=told)

        return work

    def _told(self, incoming: Incoming, headers: Mapping[str, str], record: Record) -> dict[str, str]:
        """The headers that say why the answer is not judged; none if the guard is off."""
        field: Any = incoming.body.get("modint")
        options = parse_options(field, headers)
        asks = "x-modint-mode" in headers or (isinstance(field, dict) and "mode" in field)
        if self.pipeline.settings.guard == "off" and not asks:
            return {}
        record.report = skipped_unread("opted_out" if options.mode == "off" else "unsupported_route")
        return annotate.headers_of(record.report)
