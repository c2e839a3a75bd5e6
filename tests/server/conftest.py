"""Runs the gateway in a real uvicorn on a real socket, in front of a fake engine on another."""

import asyncio
import base64
import gc
import io
import json
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import uvicorn
from openai import AsyncOpenAI
from PIL import Image
from prometheus_client import CollectorRegistry

from modint_server.adapters.folders import Adapter
from modint_server.app import create_app
from modint_server.request.gateway import Gateway
from modint_server.serving import server_config
from modint_server.settings import Settings
from tests.server.fake_upstream import BASE, JSON, FakeUpstream, running


@dataclass
class Running:
    """A gateway that is ready, and how to reach it."""

    url: str
    gateway: Gateway
    registry: CollectorRegistry
    http: aiohttp.ClientSession
    openai: AsyncOpenAI
    headers: dict[str, str] = field(default_factory=dict)

    async def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> "Response":
        """Sends a JSON document, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        async with self.http.post(self.url + path, data=io.BytesIO(data), headers=named) as response:
            return Response(
                response.status, await response.read(), {k.lower(): v for k, v in response.headers.items()}
            )

    async def get(self, path: str, **headers: str) -> "Response":
        async with self.http.get(self.url + path, headers=headers) as response:
            return Response(
                response.status, await response.read(), {k.lower(): v for k, v in response.headers.items()}
            )

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@dataclass(frozen=True)
class Response:
    """A response."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> JSON:
        document: JSON = json.loads(self.body)
        return document

    @property
    def error(self) -> JSON:
        """The envelope, checked for its shape: four keys, and a code that is a string."""
        error: JSON = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["code"], str)
        assert isinstance(error["message"], str)
        assert error["message"]
        return error


@asynccontextmanager
async def serving(
    upstream_url: str, *, ready: bool = True, adapters: Sequence[Adapter] = (), **settings: Any
) -> AsyncIterator[Running]:
    """A gateway with these settings; if `ready`, after it has attached to the engine."""
    registry = CollectorRegistry()
    fast: dict[str, Any] = {"upstream_poll_s": 0.05, "capability_timeout_s": 5.0}
    fast["adapter_selftest"] = "off"  # its requests would be among those that tests count
    fast |= {"null_checkup": "off", "null_every": 0}  # and so would these
    all_settings = Settings(upstream_url=upstream_url, **{**fast, **settings})
    app = create_app(all_settings, registry=registry, adapters=adapters)
    gateway: Gateway = app.state.gateway
    # asyncio turns Nagle's delay, 40 ms an answer, off only if the protocol is named.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = server_config(app)
        config.timeout_graceful_shutdown = 2
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started or (ready and not gateway.attachment.ready):
            assert not task.done()
            await asyncio.sleep(0.01)
        async with (
            aiohttp.ClientSession() as http,
            AsyncOpenAI(base_url=url + "/v1", api_key="client-key", max_retries=0) as client,
        ):
            try:
                yield Running(url, gateway, registry, http, client)
            finally:
                server.should_exit = True
                await asyncio.gather(task)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with running(FakeUpstream()) as fake:
        yield fake


@pytest.fixture
async def running_gateway(upstream: FakeUpstream) -> AsyncIterator[Running]:
    async with serving(upstream.url) as gateway:
        upstream.forget()
        yield gateway


def picture(colour: str = "red", size: tuple[int, int] = (8, 8)) -> str:
    """A data URL of a picture with something in it."""
    image = Image.new("RGB", size, colour)
    image.putpixel((0, 0), (255, 255, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat(**fields: Any) -> JSON:
    """A question about a picture, with a caption that lies."""
    content = [
        {"type": "image_url", "image_url": {"url": picture()}},
        {"type": "text", "text": "The caption says that the shape is blue."},
        {"type": "text", "text": "What colour is the shape?"},
    ]
    return {"model": BASE, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


def with_image(url: Any) -> JSON:
    """The same with another image."""
    body = chat()
    body["messages"][0]["content"][0]["image_url"] = url
    return body


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """Without looking for garbage: a search goes through all that a process of tests has imported, and may
    take most of a second of the thread whose work is measured. The gateway freezes what it starts with."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
