"""Requests to the engine's further routes (embeddings, rerank, audio, …): checked and passed through.

Nothing is judged there. The limits of bodies and pictures hold, media by address and embeddings are refused
wherever they stand, and the fields that the engine trusts are taken out.
"""

import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from modint_guard.chat.body import check_image_count, check_media, url_of
from modint_guard.chat.images import ImageLimits, check_data_url
from modint_guard.errors import EndpointError, RequestError
from modint_guard.types import JSON
from modint_server.engine.attachment import Attachment
from modint_server.engine.upstream import Upstream
from modint_server.request.exchange import Record, Wire
from modint_server.request.intake import STRIPPED, Incoming, read_unjudged
from modint_server.settings import PASSED_GET, Settings

# Schemas of tools and answers, in which `image_url` is but a name.
_NO_CONTENT = frozenset({"parameters", "input_schema", "schema", "json_schema", "properties", "metadata"})
# Fields of a form, by which files are sent, that the engine trusts.
_TRUSTED_FIELD = re.compile(
    rb'name="?(%s|chat_template\w*)"?\s*[\r;]' % b"|".join(map(str.encode, sorted(STRIPPED)))
)


@dataclass(frozen=True)
class Passing:
    """How such requests are answered."""

    upstream: Upstream
    attachment: Attachment
    settings: Settings
    limits: ImageLimits

    def answer_to(
        self, method: str, path: str
    ) -> Callable[[bytes, Mapping[str, str], Record, Wire], Coroutine[Any, Any, None]]:
        """The work of one request."""

        async def work(raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
            if path in PASSED_GET:
                await self._forward("GET", path, None, {}, record, wire)
                return
            kind = headers.get("content-type", "application/json")
            if path.startswith("/v1/audio/") and kind.lower().startswith("multipart/form-data"):
                _check_form(raw)
                await self._forward("POST", path, raw, {"content-type": kind}, record, wire)
                return
            incoming = self._read(raw)
            async with self.attachment.serving(incoming.body["model"]) as record.served:
                await self._forward("POST", path, incoming.bytes(), {}, record, wire)

        return work

    def _read(self, raw: bytes) -> Incoming:
        incoming = read_unjudged(raw, self.settings, self.attachment.only_base)
        check_media_in(incoming.body, self.limits)
        return incoming

    async def _forward(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        record: Record,
        wire: Wire,
    ) -> None:
        with known_to_the_engine(path):
            with record.waiting():
                async with self.upstream.passed(
                    method, path, body, {**record.upstream_headers(), **headers}
                ) as (kind, pieces):
                    if not kind.startswith("text/event-stream"):
                        data = b"".join([piece async for piece in pieces])
                        await wire.respond(Response(data, 200, {"content-type": kind}))
                        return
                    record.stream = True
                    await wire.start()
                    async for piece in pieces:
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


def check_media_in(document: JSON, limits: ImageLimits) -> int:
    """The number of pictures in a document, all of whose media are within it and within the limits. Raises
    RequestError or ImageError otherwise.
    """
    parts = list(media_in(document))
    for part in parts:
        check_media(part)
    pictures = [part["image_url"] for part in parts if "image_url" in part]
    check_image_count(len(pictures), limits.max_images)
    for picture in pictures:
        check_data_url(url_of(picture), limits, whole=False)
    return len(pictures)


def media_in(document: object) -> Iterator[JSON]:
    """Every object in a document that seems to be a part with media or embeddings, however deep."""
    if isinstance(document, dict):
        kind = document.get("type")
        names = [name for name, value in document.items() if value is not None]
        if any(name.endswith("_url") or "embeds" in name for name in names) or "embeds" in str(kind):
            yield {name: document[name] for name in names}
        for name, value in document.items():
            if name not in _NO_CONTENT:
                yield from media_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from media_in(value)


def _check_form(raw: bytes) -> None:
    if trusted := _TRUSTED_FIELD.search(raw):
        name = trusted[1].decode()
        raise RequestError(f"{name} cannot be set here: leave it out", param=name, code="invalid_value")
