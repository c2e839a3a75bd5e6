"""Pictures by address, put into a request as bytes: engine and views never see an address of a client's.

Off unless `MODINT_IMAGE_HOSTS` lists hosts. Each picture is fetched once, from an address that was checked.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import aiohttp
import pybase64
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from modint_guard.chat.body import check_image_count, url_of
from modint_guard.errors import ImageError
from modint_guard.probing.probe import cancel_and_wait
from modint_guard.types import JSON
from modint_server.request.image_hosts import MAX_URL_CHARS, ImageHosts, refused
from modint_server.request.intake import Incoming

MAX_REDIRECTS = 3
MAX_AT_ONCE = 64  # connections of all requests together
_REDIRECTS = (301, 302, 303, 307, 308)
_ADDRESS = re.compile(r"https?:", re.I)
_PICTURE = re.compile(r"image/[a-z0-9.+-]+", re.I)
_UNKNOWN_KINDS = ("", "application/octet-stream", "binary/octet-stream")  # stores that do not know the type
# Schemas of tools and answers, in which `image_url` is but a name.
NO_CONTENT = frozenset({"parameters", "input_schema", "schema", "json_schema", "properties", "metadata"})


class Pictures:
    """Fetches the pictures that requests name by address. Use it inside `async with`.

    max_images: in a request. max_bytes: of a picture. max_body_bytes: of a request with its pictures, in
    base64. timeout_s: for all pictures of a request.
    """

    def __init__(
        self,
        hosts: ImageHosts,
        *,
        max_images: int,
        max_bytes: int,
        max_body_bytes: int,
        timeout_s: float,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._hosts = hosts
        self._max_images, self._max_bytes, self._max_body_bytes = max_images, max_bytes, max_body_bytes
        self._timeout_s = timeout_s
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self._hosts:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=CheckedResolver(self._hosts, self._resolver or aiohttp.ThreadedResolver()),
                    use_dns_cache=False,  # what was checked is what is dialled
                    force_close=True,
                    limit=MAX_AT_ONCE,
                ),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                headers={"accept": "image/*", "accept-encoding": "identity", "user-agent": "modint-guard"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def are_fetched(self) -> bool:
        """Whether any host is listed."""
        return bool(self._hosts)

    async def fetched(self, request: Incoming) -> Incoming:
        """The request with its pictures in it. Raises ImageError for one that may not or cannot be fetched.

        Media that are no pictures stay as they are: their addresses are refused where the request is read.
        Its body is changed in place.
        """
        assert self._session is not None, "use it inside `async with`, with listed hosts"
        places = list(_places_in(request.body))
        urls = {place.url for place in places}
        if not urls:
            return request
        check_image_count(len(urls), self._max_images)
        room = _Room(self._max_body_bytes - request.size)
        tasks = {url: asyncio.create_task(self._fetch(self._session, url, room)) for url in urls}
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(*tasks.values())
        except TimeoutError as exc:
            raise _failed(f"did not arrive within {self._timeout_s:g} s") from exc
        finally:
            await cancel_and_wait(list(tasks.values()))
        for place in places:
            place.put(tasks[place.url].result())
        return replace(request, raw=None, size=self._max_body_bytes - room.left)

    async def _fetch(self, session: aiohttp.ClientSession, address: str, room: "_Room") -> "_Picture":
        url = _parsed(address)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                self._hosts.check(url)
                async with session.get(url, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS:
                        return await self._read(response, room)
                    url = url.join(_parsed(response.headers.get("location", "")))
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            if isinstance(exc, TimeoutError):
                raise
            raise _failed("could not be fetched from its host") from exc
        raise _failed(f"is behind more than {MAX_REDIRECTS} redirects")

    async def _read(self, response: aiohttp.ClientResponse, room: "_Room") -> "_Picture":
        if response.status != 200:
            raise _failed(f"was asked for, and its host answered with status {response.status}")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not _PICTURE.fullmatch(kind) and kind not in _UNKNOWN_KINDS:
            raise _failed("is no picture by its host's content type")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise _failed("was sent compressed, though it was asked for as it is")
        data = bytearray()
        async for piece in response.content.iter_chunked(64 * 1024):
            data += piece
            room.take(len(piece))
            if len(data) > self._max_bytes:
                raise _too_large(
                    f"An image by address is larger than {self._max_bytes} bytes: send a smaller one."
                )
        return _Picture(kind if _PICTURE.fullmatch(kind) else "image/png", pybase64.b64encode(data).decode())


class CheckedResolver(AbstractResolver):
    """Resolves a name once. Raises ImageError unless every address that it has may be dialled."""

    def __init__(self, hosts: ImageHosts, resolver: AbstractResolver) -> None:
        self._hosts, self._resolver = hosts, resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """As the resolver behind it."""
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            self._hosts.check_address(ipaddress.ip_address(each["host"]))
        return found

    async def close(self) -> None:
        await self._resolver.close()


@dataclass(frozen=True)
class _Picture:
    kind: str  # its media type, which says nothing sure: the bytes decide
    text: str  # base64


@dataclass(frozen=True)
class _Place:
    """Where a request names a picture by address: `holder[name]`, or the source of a part of Anthropic's."""

    holder: JSON
    name: str
    url: str

    def put(self, picture: _Picture) -> None:
        """Puts the picture there in place of its address."""
        if self.holder.get("type") == "url":
            self.holder.clear()
            self.holder.update({"type": "base64", "media_type": picture.kind, "data": picture.text})
        else:
            self.holder[self.name] = f"data:{picture.kind};base64,{picture.text}"


@dataclass
class _Room:
    """How many bytes of base64 may still come into one request."""

    left: int

    def take(self, size: int) -> None:
        """Raises ImageError if there is no room for `size` bytes more."""
        self.left -= -(-size * 4 // 3)
        if self.left < 0:
            raise _too_large(
                "The request is too large with its images by address: send fewer or smaller ones."
            )


def _places_in(document: Any) -> Iterator[_Place]:
    """Every picture that a document names by address, however deep."""
    if isinstance(document, dict):
        named = document.get("image_url")
        holder, name = (named, "url") if isinstance(named, dict) else (document, "image_url")
        source = document.get("source")
        if document.get("type") == "image" and isinstance(source, dict) and source.get("type") == "url":
            holder, name = source, "url"
        if _ADDRESS.match(url := url_of(holder.get(name))):
            yield _Place(holder, name, url)
    children: Iterable[Any] = (
        (value for name, value in document.items() if name not in NO_CONTENT)
        if isinstance(document, dict)
        else document
        if isinstance(document, list)
        else ()
    )
    for child in children:
        yield from _places_in(child)


def _parsed(address: str) -> URL:
    if len(address) > MAX_URL_CHARS:
        raise refused(f"An image's address is longer than {MAX_URL_CHARS} characters.")
    try:
        return URL(address)
    except ValueError as exc:
        raise refused("An image's address cannot be read: send the image itself as a data: URL.") from exc


def _failed(why: str) -> ImageError:
    return ImageError(f"An image by address {why}: send it as a data: URL.", code="invalid_image_url")


def _too_large(message: str) -> ImageError:
    return ImageError(message, code="image_too_large", status=413)
