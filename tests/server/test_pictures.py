"""Pictures by address: fetched once by the gateway, within bounds; the engine sees bytes alone."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from modint_guard.errors import ConfigError
from tests.server.conftest import Response, chat, picture, serving, with_image
from tests.server.fake_upstream import BASE, FakeUpstream

PNG = base64.b64decode(picture().partition(",")[2])
JSON = dict[str, Any]


class Host:
    """A host of pictures: what it answers by path, and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {"/red.png": answer(PNG)}
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            self.asked.append(path)
            self.heads.append(head.lower())
            data = self.answers.get(path)
            if data is None:
                await reader.read()  # never answers
            else:
                writer.write(data)
                await writer.drain()
        writer.close()


def answer(body: bytes, status: str = "200 OK", kind: str = "image/png", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    length = "" if "content_length" in headers else f"content-length: {len(body)}\r\n"
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{length}{''.join(lines)}\r\n".encode() + body


@asynccontextmanager
async def hosting() -> AsyncIterator[Host]:
    host = Host()
    server = await asyncio.start_server(host.handle, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    async with server:
        yield host


async def asked(upstream: FakeUpstream, host: Host, url: str, **settings: Any) -> Response:
    """The reply to a question about a picture at this path of the host, or at this address."""
    address = host.url + url if url.startswith("/") else url
    wanted: JSON = {"image_hosts": f"127.0.0.1:{host.port}", "image_fetch_timeout_s": 0.5, **settings}
    async with serving(upstream.url, **wanted) as gateway:
        upstream.forget()
        return await gateway.post(with_image({"url": address}) | {"modint": {"relevant": "image"}})


def urls_in(body: JSON) -> list[str]:
    return [p["image_url"]["url"] for p in body["messages"][0]["content"] if p["type"] == "image_url"]


async def test_a_picture_by_address_is_fetched_once_and_judged_as_bytes(upstream: FakeUpstream) -> None:
    async with hosting() as host:
        reply = await asked(upstream, host, "/red.png")
    assert (reply.status, reply.headers["x-modint-verdict"]) == (200, "flagged")
    assert host.asked == ["/red.png"]
    assert len(upstream.calls) == 4
    assert all(url.startswith("data:image/png;base64,") for body in upstream.calls for url in urls_in(body))
    assert base64.b64decode(urls_in(upstream.calls[0])[0].partition(",")[2]) == PNG


async def test_nothing_of_the_client_is_shown_to_the_host(upstream: FakeUpstream) -> None:
    async with hosting() as host, serving(upstream.url, image_hosts=f"127.0.0.1:{host.port}") as gateway:
        body = with_image(f"{host.url}/red.png")
        await gateway.post(body, authorization="Bearer secret", cookie="a=b", x_request_id="r-1")
    assert "secret" not in host.heads[0]
    assert "cookie" not in host.heads[0]
    assert "r-1" not in host.heads[0]
    assert f"host: 127.0.0.1:{host.port}" in host.heads[0]


async def test_a_picture_that_is_named_twice_is_fetched_once(upstream: FakeUpstream) -> None:
    async with hosting() as host, serving(upstream.url, image_hosts=f"127.0.0.1:{host.port}") as gateway:
        body = with_image({"url": f"{host.url}/red.png"})
        body["messages"][0]["content"].append({"type": "input_image", "image_url": f"{host.url}/red.png"})
        upstream.forget()
        assert (await gateway.post(body)).status == 200
    assert host.asked == ["/red.png"]
    assert len(set(urls_in(upstream.calls[0]))) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/responses",
            {
                "model": BASE,
                "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "AT"}]}],
            },
        ),
        (
            "/v1/messages",
            {
                "model": BASE,
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "AT"}}]}
                ],
            },
        ),
        ("/pooling", {"model": BASE, "messages": [{"content": [{"image_url": {"url": "AT"}}]}]}),
    ],
)
async def test_so_is_one_of_every_other_route(upstream: FakeUpstream, path: str, body: JSON) -> None:
    upstream.further = {path: ("application/json", b"{}")}
    async with hosting() as host, serving(upstream.url, image_hosts=f"127.0.0.1:{host.port}") as gateway:
        text = str(body).replace("'", '"').replace("AT", f"{host.url}/red.png").encode()
        upstream.forget()
        assert (await gateway.post(text, path)).status == 200
    assert host.asked == ["/red.png"]
    sent = upstream.raw[-1].decode()
    assert host.url not in sent
    assert base64.b64encode(PNG).decode() in sent


async def test_without_listed_hosts_an_address_is_refused_and_nothing_is_asked(
    upstream: FakeUpstream,
) -> None:
    async with hosting() as host:
        reply = await asked(upstream, host, "/red.png", image_hosts="")
    assert (reply.status, reply.error["code"]) == (400, "remote_image_refused")
    assert (host.asked, upstream.calls) == ([], [])


@pytest.mark.parametrize(
    "url", ["http://127.0.0.2/a.png", "http://localhost:PORT/red.png", "https://pictures.example.org/a.png"]
)
async def test_a_host_that_is_not_listed_is_not_asked(upstream: FakeUpstream, url: str) -> None:
    async with hosting() as host:
        reply = await asked(upstream, host, url.replace("PORT", str(host.port)))
    assert (reply.status, reply.error["code"]) == (400, "remote_image_refused")
    assert (host.asked, upstream.calls) == ([], [])


async def test_a_listed_name_of_an_inner_address_is_asked_only_if_that_is_listed_too(
    upstream: FakeUpstream,
) -> None:
    async with hosting() as host:
        url, name = f"http://localhost:{host.port}/red.png", f"localhost:{host.port}"
        reply = await asked(upstream, host, url, image_hosts=name)
        assert (reply.status, reply.error["code"], host.asked) == (400, "remote_image_refused", [])
        reply = await asked(upstream, host, url, image_hosts=f"{name},127.0.0.0/8,::1")
        assert (reply.status, host.asked) == (200, ["/red.png"])


async def test_a_redirect_is_followed_within_the_listed_hosts(upstream: FakeUpstream) -> None:
    async with hosting() as host:
        host.answers["/old"] = answer(b"", "302 Found", location="/red.png")
        assert (await asked(upstream, host, "/old")).status == 200
    assert host.asked == ["/old", "/red.png"]


@pytest.mark.parametrize(
    "location", ["http://127.0.0.2:PORT/red.png", "file:///etc/passwd", "//[::1]/", "http://[/"]
)
async def test_a_redirect_to_elsewhere_is_not(upstream: FakeUpstream, location: str) -> None:
    async with hosting() as host:
        moved = location.replace("PORT", str(host.port))
        host.answers["/old"] = answer(b"", "307 Temporary Redirect", location=moved)
        reply = await asked(upstream, host, "/old")
    assert (reply.status, reply.error["code"]) == (400, "remote_image_refused")
    assert (host.asked, upstream.calls) == (["/old"], [])


async def test_redirects_in_a_ring_end(upstream: FakeUpstream) -> None:
    async with hosting() as host:
        host.answers["/old"] = answer(b"", "302 Found", location="/old")
        reply = await asked(upstream, host, "/old")
    assert (reply.status, reply.error["code"], len(host.asked)) == (400, "invalid_image_url", 4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer(b"<html>", kind="text/html"), "no picture by its host's content type"),
        (answer(b"", "404 Not Found"), "status 404"),
        (answer(PNG, content_encoding="gzip"), "compressed"),
        (answer(PNG, content_length="9000"), "could not be fetched"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "could not be fetched"),
        (None, "did not arrive within 0.5 s"),
    ],
)
async def test_what_is_no_picture_is_said(upstream: FakeUpstream, given: bytes | None, says: str) -> None:
    async with hosting() as host:
        host.answers = {} if given is None else {"/a": given}
        reply = await asked(upstream, host, "/a")
    assert (reply.status, reply.error["code"], upstream.calls) == (400, "invalid_image_url", [])
    assert says in reply.error["message"]
    assert "127.0.0.1" not in reply.error["message"]


async def test_bytes_that_are_no_picture_are_refused_as_in_a_data_url(upstream: FakeUpstream) -> None:
    async with hosting() as host:
        host.answers["/a"] = answer(b"<svg/>", kind="image/svg+xml")
        reply = await asked(upstream, host, "/a")
    assert (reply.status, reply.error["code"], upstream.calls) == (400, "invalid_image", [])


@pytest.mark.parametrize("limit", [{"max_image_bytes": len(PNG) - 1}, {"max_body_bytes": 500}])
async def test_pictures_are_bounded_alone_and_with_their_request(
    upstream: FakeUpstream, limit: dict[str, int]
) -> None:
    async with hosting() as host:
        host.answers["/a"] = answer(PNG + bytes(300))
        reply = await asked(upstream, host, "/a", **limit)
    assert (reply.status, reply.error["code"], upstream.calls) == (413, "image_too_large", [])


async def test_more_pictures_than_a_request_may_hold_are_not_fetched(upstream: FakeUpstream) -> None:
    async with (
        hosting() as host,
        serving(upstream.url, image_hosts=f"127.0.0.1:{host.port}", max_images=2) as gateway,
    ):
        body = chat()
        part = {"type": "image_url"}
        body["messages"][0]["content"] = [{**part, "image_url": f"{host.url}/{n}"} for n in range(3)]
        reply = await gateway.post(body)
    assert (reply.status, reply.error["code"], host.asked) == (400, "too_many_images", [])


async def test_other_media_by_address_stay_refused(upstream: FakeUpstream) -> None:
    async with hosting() as host, serving(upstream.url, image_hosts=f"127.0.0.1:{host.port}") as gateway:
        body = chat()
        body["messages"][0]["content"][0] = {"type": "video_url", "video_url": {"url": f"{host.url}/red.png"}}
        reply = await gateway.post(body)
    assert (reply.status, reply.error["code"], host.asked) == (400, "remote_image_refused", [])


async def test_a_host_that_is_none_stops_the_start(upstream: FakeUpstream) -> None:
    with pytest.raises(ConfigError, match=r"image_hosts: 'https://a\.org' is no host"):
        async with serving(upstream.url, image_hosts="https://a.org"):
            pass
