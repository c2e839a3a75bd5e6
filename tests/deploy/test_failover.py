"""The nginx configuration before two gateways: what fails behind one of them is answered by the other."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from modint_guard.demo.launch import free_port
from modint_server.settings import Settings
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import FakeUpstream, running

pytestmark = pytest.mark.needs("nginx")
CONF = Path(__file__).parents[2] / "deploy" / "nginx" / "modint-guard.conf"
MAIN = """daemon off; pid {0}/pid; error_log {0}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f;
uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; include {0}/modint-guard.conf; }}
"""
N = 12
ASKED = {"relevant": "image"}


@dataclass
class Pair:
    """Two gateways, each before an engine, and nginx before both."""

    url: str
    engines: list[FakeUpstream]
    gateways: list[Running]
    stacks: list[list[AsyncExitStack]]  # of each side its engine and its gateway: closing one ends it

    async def ask(self, **fields: object) -> list[tuple[int, str | None, bytes]]:
        """Status, verdict and body of so many answers, asked at once."""
        async with aiohttp.ClientSession() as http:

            async def one() -> tuple[int, str | None, bytes]:
                body = chat(modint=ASKED, **fields)
                async with http.post(f"{self.url}/v1/chat/completions", json=body) as answer:
                    return answer.status, answer.headers.get("x-modint-verdict"), await answer.read()

            return await asyncio.gather(*(one() for _ in range(N)))


@asynccontextmanager
async def nginx(folder: Path, addresses: list[str]) -> AsyncIterator[str]:
    """The configuration of the repository, at a free port, before these addresses."""
    text, port = CONF.read_text("utf-8"), free_port()
    for number, address in enumerate(addresses, 1):
        text = text.replace(f"127.0.0.1:800{number} ", f"{address.removeprefix('http://')} ")
    text = text.replace("listen 127.0.0.1:8000;", f"listen 127.0.0.1:{port};")
    (folder / "modint-guard.conf").write_text(text, "utf-8")
    (folder / "nginx.conf").write_text(MAIN.format(folder), "utf-8")
    program = shutil.which("nginx", path="/usr/sbin") or shutil.which("nginx")
    assert program
    process = await asyncio.create_subprocess_exec(
        program, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")
    )
    try:
        for _ in range(100):
            assert process.returncode is None, (folder / "error.log").read_text("utf-8")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as everything:
        engines, gateways, stacks = [], [], []
        for _ in range(2):
            of_engine, of_gateway = AsyncExitStack(), AsyncExitStack()
            everything.push_async_callback(of_engine.aclose)
            everything.push_async_callback(of_gateway.aclose)
            engines.append(await of_engine.enter_async_context(running(FakeUpstream())))
            gateways.append(await of_gateway.enter_async_context(serving(engines[-1].url)))
            engines[-1].forget()
            stacks.append([of_engine, of_gateway])
        url = await everything.enter_async_context(nginx(tmp_path, [each.url for each in gateways]))
        yield Pair(url, engines, gateways, stacks)


async def test_an_answer_and_its_probes_are_of_one_engine(pair: Pair) -> None:
    assert {(status, verdict) for status, verdict, _ in await pair.ask()} == {(200, "flagged")}
    for engine in pair.engines:
        assert engine.calls
        assert len(engine.calls) % 4 == 0  # the request and its three views


async def test_without_one_engine_every_request_is_answered(pair: Pair) -> None:
    await pair.stacks[0][0].aclose()
    for _ in range(3):
        assert {(status, verdict) for status, verdict, _ in await pair.ask()} == {(200, "flagged")}
    assert not pair.engines[0].calls


async def test_without_one_gateway_every_request_is_answered(pair: Pair) -> None:
    await pair.stacks[1][1].aclose()
    for _ in range(3):
        assert {(status, verdict) for status, verdict, _ in await pair.ask()} == {(200, "flagged")}


async def test_a_full_gateway_leaves_its_requests_to_the_other(pair: Pair) -> None:
    for _ in range(pair.gateways[0].gateway.settings.max_in_flight):
        pair.gateways[0].gateway.pipeline.places.take("somebody")
    assert {status for status, _, _ in await pair.ask()} == {200}
    assert not pair.engines[0].calls


async def test_a_stream_ends_with_its_verdict(pair: Pair) -> None:
    for status, _, body in await pair.ask(stream=True):
        assert status == 200
        assert b'"verdict":"flagged"' in body
        assert body.endswith(b"data: [DONE]\n\n")


async def test_what_the_client_did_wrong_is_asked_once(pair: Pair) -> None:
    answers = await pair.ask(n=99)
    assert {status for status, _, _ in answers} == {400}
    assert not any(engine.calls for engine in pair.engines)


def test_its_limits_are_wider_than_the_gateways_own() -> None:
    text, settings = CONF.read_text("utf-8"), Settings()

    def figure(name: str) -> int:
        found = re.search(rf"{name} (\d+)", text)
        assert found
        return int(found[1])

    assert figure("client_max_body_size") * 2**20 > settings.max_body_bytes
    assert figure("proxy_read_timeout") > settings.read_timeout_s
    assert figure("keepalive_timeout") < settings.keep_alive_s
