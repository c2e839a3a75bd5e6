"""Seeded mutation in process, over ASGI: bodies of clients, and replies of an engine, whole and streamed.

Every request has a generator of its own, seeded by its number: `Fuzz(side, seed).one(number)` repeats it.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Self

import orjson
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from modint_server.app import create_app
from modint_server.engine.upstream import NO_HEADERS, Upstream, json_object
from modint_server.logs import LOGGER
from modint_server.request.gateway import Gateway
from modint_server.settings import Settings
from tests.server.fake_upstream import ADAPTER, BASE
from tests.server.fuzz_documents import (
    ACTIONS,
    ASKED,
    CHAT,
    CHECK,
    COMPLETIONS,
    MESSAGES,
    PASSED,
    RESPONSES,
    about_a_picture,
    body_of,
    bytes_damaged,
    chunks_of,
    completion_of,
    damaged,
    events_of_response,
    in_words_of_messages,
    in_words_of_responses,
    is_json,
    response_of,
    written,
)
from tests.server.test_mitigation import chunks, text_of
from tests.server.test_responses import documents
from tests.server.test_streams_and_faults import until

JSON = dict[str, Any]
Side = Literal["client", "engine"]
PATHS = (*([CHAT] * 5), CHECK, COMPLETIONS, RESPONSES, RESPONSES, MESSAGES, PASSED)  # of clients
HUNG_S = 60.0
HEADERS = {
    "x-modint-mode": ("on", "off", "ON ", "x"),
    "x-modint-relevant": ("image", "both", "é"),
    "x-modint-action": ("ladder", "neutralise", ""),
    "x-modint-debug": ("true",),
    "x-request-id": ("a", "a b", "é"),
}


@dataclass(frozen=True)
class Row:
    """What became of a number of requests. lost: answers that the engine gave and the client did not get."""

    side: str
    seed: int
    first: int  # the number of the first of them
    requests: int
    ok: int
    refused: int
    engine_error: int
    internal_error: int
    unhandled: int
    malformed: int
    hung: int
    lost: int
    damaged_replies: int
    steps_failed: int
    tasks_left: int
    seconds: float


@dataclass(frozen=True)
class Finding:
    """A request that went wrong: how, its number, what the log holds of it."""

    kind: str
    number: int
    trace: str
    body: bytes


@dataclass
class Script:
    """How the engine answers one request. harm: which of its replies are damaged, and in what."""

    random: Random
    harm: Literal["none", "anything", "beside", "extras"] = "none"
    share: float = 0.05
    text: str | None = None  # of the client's own call
    damaged_replies: int = 0

    def reply(self, body: JSON) -> tuple[JSON, bool]:
        """A reply, and whether anything in it may be damaged."""
        is_whole = body.get("max_tokens", ASKED) == ASKED
        is_main = self.text is None and body.get("model") == BASE and is_whole
        completion = completion_of(body, self.random)
        if is_main:
            self.text = completion["choices"][0]["message"]["content"]
        if self.harm == "extras" and is_main:
            whole = written(completion)
            for holder, name in ((completion, "usage"), (completion["choices"][0], "logprobs")):
                holder[name] = damaged(holder[name], self.random, 4 * self.share)
            self.damaged_replies += written(completion) != whole
            if not is_json(completion):
                self.harm = "anything"
        return completion, self.harm == "anything" or (self.harm == "beside" and not is_main)

    def whole(self, path: str, body: JSON) -> bytes:
        completion, may_damage = self.reply(body)
        if path == RESPONSES:
            completion = response_of(completion)
        if not may_damage or self.random.random() < 0.3:
            return written(completion)
        data = written(damaged(completion, self.random, self.share))
        if self.random.random() < 0.1:
            data = bytes_damaged(data, self.random)
        self.damaged_replies += data != written(completion)
        return data

    def stream(self, path: str, body: JSON) -> bytes:
        completion, may_damage = self.reply(body)
        is_chat = path != RESPONSES
        parts: Any = chunks_of(completion) if is_chat else events_of_response(response_of(completion))
        whole = _events(parts, is_chat)
        if not may_damage:
            return whole
        data = _events(damaged(parts, self.random, self.share), is_chat)
        if self.random.random() < 0.1:
            data = bytes_damaged(data, self.random)
        self.damaged_replies += data != whole
        return data


def _events(parts: Any, is_chat: bool) -> bytes:
    events = [b"data: " + written(part) for part in (parts if isinstance(parts, list) else [parts])]
    return b"\n\n".join([*events, b"data: [DONE]\n\n" if is_chat else b""])


class StubEngine(Upstream):
    """An engine in this process; `script` answers the request that is under way."""

    def __init__(self) -> None:
        super().__init__("http://engine")
        self.script = Script(Random(0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def models(self) -> list[JSON]:
        return [{"id": BASE, "parent": None}, {"id": ADAPTER, "parent": BASE}]

    async def metrics(self) -> bytes:
        return b""

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
        await asyncio.sleep(0)
        return self.script.whole(path, json_object(body))

    @contextlib.asynccontextmanager
    async def passed(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        completion = self.script.reply(json_object(body))[0]
        text = completion["choices"][0]["message"]["content"]

        async def pieces() -> AsyncIterator[bytes]:
            yield written({"type": "message", "content": [{"type": "text", "text": text}]})

        yield "application/json", pieces()

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        data = self.script.stream(path, json_object(body))

        async def pieces() -> AsyncIterator[bytes]:
            size = self.script.random.choice([1, 7, 100, 10_000]) if len(data) < 2000 else 10_000
            for at in range(0, len(data), size):
                yield data[at : at + size]

        yield pieces()


# One side of the gateway.


class _Log(logging.Handler):
    """Keeps the name and the trace of the last error."""

    last: tuple[str, str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.last = (record.getMessage(), logging.Formatter().formatException(record.exc_info))


@dataclass
class Fuzz:
    """Sends requests of one side to a gateway in this process. `findings` keeps the first of each kind."""

    side: Side
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)

    async def run(self, count: int, first: int = 0) -> Row:
        """The row of requests `first` to `first + count`."""
        engine, began, log = StubEngine(), time.perf_counter(), _Log()
        settings = Settings(
            upstream_url="http://engine",
            upstream_poll_s=1000,
            adapter_selftest="off",
            probe_deadline_s=5.0,
            noop_every=7,
            null_checkup="off",  # its calls go on after the last request, and are no task left behind
        )
        app = create_app(settings, upstream=engine, registry=CollectorRegistry())
        gateway: Gateway = app.state.gateway
        handlers, LOGGER.handlers, LOGGER.propagate = LOGGER.handlers, [log], False
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._left_behind(context))
        try:
            async with app.router.lifespan_context(app):
                await until(lambda: gateway.attachment.ready)
                before = len(asyncio.all_tasks())
                for number in range(first, first + count):
                    await self.one(number, app, engine, log)
                await asyncio.sleep(0.05)
                tasks = max(0, len(asyncio.all_tasks()) - before) + gateway.in_flight
        finally:
            LOGGER.handlers, LOGGER.propagate = handlers, True
        return Row(
            side=self.side,
            seed=self.seed,
            first=first,
            requests=count,
            **{name: self.counts[name] for name in list(Row.__dataclass_fields__)[4:14]},
            tasks_left=tasks,
            seconds=round(time.perf_counter() - began, 1),
        )

    async def one(self, number: int, app: FastAPI, engine: StubEngine, log: _Log) -> None:
        """Sends one request, and counts what becomes of it."""
        random = Random(f"{self.side} {self.seed} {number}")
        raw, path = self._request(random)
        headers = {name: random.choice(values) for name, values in HEADERS.items() if random.random() < 0.05}
        engine.script, log.last = self._script(random), None
        try:
            async with asyncio.timeout(HUNG_S):
                answer = await _sent(app, raw, path, headers if self.side == "client" else {})
        except TimeoutError:
            self._found("hung", number, raw, "")
            return
        except Exception as exc:  # noqa: BLE001 - what leaves the app is what is looked for
            self._found("unhandled", number, raw, repr(exc))
            return
        self.counts["damaged_replies"] += engine.script.damaged_replies
        trace = log.last[1] if log.last else ""
        if b'"internal_error"' in answer.body:
            self._found("internal_error", number, raw, trace)
            return
        if log.last and log.last[0] == "step_failed":
            self._found("steps_failed", number, raw, trace)
        if not answer.is_well_formed():
            self._found("malformed", number, raw, answer.body[:300].decode("utf-8", "replace"))
        if engine.script.harm in ("beside", "extras") and not answer.holds(engine.script.text):
            self._found("lost", number, raw, f"{answer.status} {answer.body[:500]!r}")
        self.counts[
            "ok" if answer.status == 200 else "refused" if answer.status < 500 else "engine_error"
        ] += 1

    def _request(self, random: Random) -> tuple[bytes, str]:
        if self.side == "engine":
            return self._whole_request(random)
        path = random.choice(PATHS)
        raw = written(body_of(path, random, share=random.choice([0, 0.01, 0.03, 0.1])))
        return (bytes_damaged(raw, random) if random.random() < 0.03 else raw), path

    def _whole_request(self, random: Random) -> tuple[bytes, str]:
        """A request with nothing odd in it, whose answer is judged."""
        body: JSON = {"model": BASE, "messages": [about_a_picture(random)], "stream": random.random() < 0.5}
        body["modint"] = {"relevant": "image", "action": random.choice(ACTIONS)}
        match random.choice([CHAT, CHAT, CHAT, RESPONSES, MESSAGES]):
            case "/v1/responses":
                return written(in_words_of_responses(body, random)), RESPONSES
            case "/v1/messages":
                return written(in_words_of_messages(body)), MESSAGES
        return written(body), CHAT

    def _script(self, random: Random) -> Script:
        if self.side == "client":
            return Script(random)
        return Script(
            random, random.choice(["anything", "beside", "extras"]), random.choice([0.02, 0.05, 0.2])
        )

    def _found(self, kind: str, number: int, raw: bytes, trace: str) -> None:
        self.counts[kind] += 1
        frames = [line.strip() for line in trace.splitlines() if line.strip()]
        where = next(
            (line for line in reversed(frames) if line.startswith("File") and "/modint_" in line), ""
        )
        self.findings.setdefault(
            f"{kind} {where[-70:]} {frames[-1][:70] if frames else ''}", Finding(kind, number, trace, raw)
        )

    def _left_behind(self, context: dict[str, Any]) -> None:
        self._found("unhandled", -1, b"", repr(context))


@dataclass(frozen=True)
class Sent:
    """What came back to the client. path: of the request."""

    path: str
    status: int
    kind: str
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.kind.startswith("text/event-stream")

    def is_well_formed(self) -> bool:
        """Whether it is what OpenAI's clients read: an object, an envelope, or frames up to their end."""
        if self.is_stream:
            is_ended = self.path in (RESPONSES, MESSAGES) or b"data: [DONE]" in self.body[-40:]
            return is_ended and self.body.endswith(b"\n\n")
        try:
            document = json.loads(self.body)
        except ValueError:
            return False
        if self.status == 200:
            return isinstance(document, dict)
        error = document.get("error")
        return isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}

    def holds(self, text: str | None) -> bool:
        """Whether the client got the engine's text, or what a policy put in its place."""
        if b'"mitigation":{' in self.body:
            return True
        if self.status != 200 or text is None:
            return False
        if self.path == CHAT and self.is_stream:
            return text_of(chunks(self.body)) == text
        if self.path == CHAT:
            return bool(orjson.loads(self.body)["choices"][0]["message"]["content"] == text)
        if self.path == MESSAGES:
            return _said(documents(self.body) if self.is_stream else [orjson.loads(self.body)]) == text
        response = documents(self.body)[-1]["response"] if self.is_stream else orjson.loads(self.body)
        return bool(response["output"][0]["content"][0]["text"] == text)


def _said(events: list[JSON]) -> str:
    """The text of a message of Anthropic's API, or of its events."""
    parts = [event.get("delta", {}) for event in events] + [
        part for event in events for part in event.get("content", ())
    ]
    return "".join(part.get("text", "") for part in parts)


async def _sent(app: FastAPI, raw: bytes, path: str, headers: dict[str, str]) -> Sent:
    """One request over ASGI, and its whole answer."""
    sent, messages, never = False, list[Any](), asyncio.Event()

    async def receive() -> Any:
        nonlocal sent
        if sent:
            await never.wait()
        sent = True
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    named = {"content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
    }
    await app(scope, receive, send)
    start, *pieces = messages
    kind = dict(start["headers"]).get(b"content-type", b"").decode()
    return Sent(path, start["status"], kind, b"".join(piece.get("body", b"") for piece in pieces))
