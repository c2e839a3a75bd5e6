"""Requests to the engine's further routes (embeddings, rerank, audio, …): checked and passed through.

Nothing is judged there. The limits of bodies and pictures hold, media by address and embeddings are refused
wherever they stand, and the fields that the engine trusts are taken out.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.responses import Response

from modint_guard.chat.anthropic import image_url_of, usage_of_message
from modint_guard.chat.body import check_image_count, check_media, url_of
from modint_guard.chat.images import ImageLimits, check_data_url, check_total
from modint_guard.chat.unread import fields
from modint_guard.errors import EndpointError, RequestError
from modint_guard.types import JSON
from modint_server.engine.upstream import Upstream, collected
from modint_server.request.exchange import Record, Wire
from modint_server.request.intake import STRIPPED, DefaultModel, Incoming, read_any
from modint_server.request.keys import Client
from modint_server.request.pictures import NO_CONTENT
from modint_server.request.pipeline import Pipeline
from modint_server.request.sse import Splitter, data_of
from modint_server.settings import Settings

Work = Callable[[bytes, Mapping[str, str], Record, Wire], Coroutine[Any, Any, None]]
# Fields of a form, by which files are sent, that the engine trusts.
_TRUSTED_FIELD = re.compile(
    rb'name="?(%s|chat_template\w*)"?\s*[\r;]' % b"|".join(map(str.encode, sorted(STRIPPED))), re.I
)


@dataclass(frozen=True)
class Passing:
    """How such requests are answered, by what `Pipeline` stands on."""

    pipeline: Pipeline

    def answer_to(self, path: str) -> Work:
        """The work of one request."""

        async def work(raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
            kind = headers.get("content-type", "application/json")
            if path.startswith("/v1/audio/") and kind.lower().startswith("multipart/form-data"):
                _check_restricted(record.client)
                await self.pipeline.done(partial(_check_form, raw), len(raw), record)
                sent = {"content-type": kind}
                await forward(self.pipeline.upstream, path, raw, record, wire, sent=sent)
                return
            read = partial(read_passed, limits=self.pipeline.guard.config.image_limits)
            incoming = await self.pipeline.read(read, raw, record)
            record.images = incoming.images
            async with self.pipeline.attachment.serving(incoming.body["model"]) as record.served:
                await forward(self.pipeline.upstream, path, incoming.bytes(), record, wire)

        return work


async def forward(
    upstream: Upstream,
    path: str,
    body: bytes,
    record: Record,
    wire: Wire,
    *,
    sent: Mapping[str, str] | None = None,
    told: dict[str, str] | None = None,
) -> None:
    """The engine's answer as it comes, whole or streamed. Raises EndpointError, and RequestError for a route
    that the engine has not.

    sent: further headers to the engine. told: further headers to the client.
    """
    with known_to_the_engine(path):
        with record.waiting():
            async with upstream.passed(path, body, {**record.upstream_headers(), **(sent or {})}) as answer:
                kind, pieces = answer
                if not kind.startswith("text/event-stream"):
                    data = await collected(pieces)
                    if record.client.tokens_per_minute:
                        record.usage = await asyncio.to_thread(_usage_in, data)
                    await wire.respond(Response(data, 200, {"content-type": kind, **(told or {})}))
                    return
                record.stream = True
                await wire.start(told)
                splitter = Splitter() if record.client.tokens_per_minute else None
                async for piece in pieces:
                    for event in splitter.feed(piece) if splitter else ():
                        record.usage = _usage_in(data_of(event) or b"", record.usage)
                    await wire.write(piece)
        await wire.end(b"")


@contextmanager
def known_to_the_engine(path: str) -> Iterator[None]:
    """Raises RequestError in place of the engine's own error for a route that it has not."""
    try:
        yield
    except EndpointError as exc:
        if exc.status == 404 and b'"error"' not in exc.body:
            raise RequestError(
                f"unknown route {path}: the engine has none", code="unknown_route", status=404
            ) from exc
        raise


def read_passed(
    document: Incoming, settings: Settings, default_model: DefaultModel, *, limits: ImageLimits
) -> Incoming:
    """A request of which any object may be a part with media. Raises RequestError or ImageError unless all
    media are within it and within the limits.
    """
    incoming = read_any(document, settings, default_model)
    parts = list(_media_in(incoming.body))
    for part in parts:
        check_media(part)
    pictures = [part["image_url"] for part in parts if "image_url" in part]
    check_image_count(len(pictures), limits.max_images)
    check_total((check_data_url(url_of(each), limits, whole=False) for each in pictures), limits)
    return replace(incoming, images=len(pictures))


def _media_in(document: object) -> Iterator[JSON]:
    """Every object in a document that seems to be a part with media or embeddings, however deep."""
    if isinstance(document, dict):
        kind = document.get("type")
        if kind == "image" and isinstance(source := document.get("source"), dict):
            yield {"image_url": image_url_of(source)}
        names = [name for name, value in document.items() if value is not None]
        if any(name.endswith("_url") or "embeds" in name for name in names) or "embeds" in str(kind):
            yield {name: document[name] for name in names}
        for name, value in document.items():
            if name not in NO_CONTENT:
                yield from _media_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from _media_in(value)


def _usage_in(data: bytes, before: object = None) -> object:
    """The tokens that an answer, or an event of one, says it cost so far; `before` if it does not."""
    try:
        document = fields(data, "usage", "message")
    except ValueError:
        return before
    message = document.get("message")
    holder = message if isinstance(message, dict) else document
    usage = holder.get("usage")
    if not isinstance(usage, dict):
        return before
    if "prompt_tokens" in usage:
        return usage
    told = {name: number for name, number in (usage_of_message(usage) or {}).items() if number}
    return {**(before if isinstance(before, dict) else {}), **told}


def _check_restricted(client: Client) -> None:
    """Raises RequestError if a key may be used for some models only: forms are not read, and name theirs."""
    if client.models is not None:
        raise RequestError(
            "this key may ask some models only, and forms with files are not read: use another key",
            code="model_not_allowed",
            status=403,
            type="permission_error",
        )


def _check_form(raw: bytes) -> None:
    if trusted := _TRUSTED_FIELD.search(raw):
        name = trusted[1].decode()
        raise RequestError(f"{name} cannot be set here: leave it out", param=name, code="invalid_value")
