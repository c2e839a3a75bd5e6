"""Seeded mutation in process, over ASGI: bodies of clients, and replies of an engine, whole and streamed.

Every request has a generator of its own, seeded by its number: `Fuzz(side, seed).one(number)` repeats it.
"""

import asyncio
import contextlib
import copy
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
from tests.server.conftest import picture
from tests.server.fake_upstream import ADAPTER, BASE
from tests.server.test_mitigation import chunks, text_of
from tests.server.test_streams_and_faults import until

JSON = dict[str, Any]
Side = Literal["client", "engine"]
CHAT, CHECK, COMPLETIONS = "/v1/chat/completions", "/v1/guard/check", "/v1/completions"
HUNG_S = 60.0
QUESTION = "What colour is the shape?"
PICTURE = picture()
PICTURES: tuple[str, ...] = (
    PICTURE,
    picture(size=(1, 1)),
    picture(size=(30, 20)),
    PICTURE[:-10],
    "",
    "data:;base64,",
    "x",
)
PICTURES += ("data:image/png;base64,AAAA", "http://127.0.0.1/x", "data:audio/wav;base64,AAAA")
PICTURES += (PICTURE.replace("png", "jpeg"), PICTURE.replace("data:", "DATA:"))
TEXTS: tuple[str, ...] = (
    QUESTION,
    "The caption says that the shape is blue.",
    "A) red\nB) blue\nWhich?",
    "",
    " ",
    "\0",
    "?",
)
TEXTS += (
    "Options:\n1. red\n2. blue\n3. green",
    "Is it red (yes/no)?",
    "one of: red, blue",
    "- x\n- y",
    "(A)",
)
TEXTS += (
    "Context: it is blue. Question: what is it?",
    "<context>blue</context>",
    "Image 1:",
    "a" * 300,
    "\n",
)
TEXTS += (
    "¿Qué color?",
    "什么颜色？",
    '"Is it?" she said.',
    "Describe the picture",
    "A. A\nB. A",
    "Question:",
)
WORDS: tuple[str, ...] = (
    "red",
    "blue",
    "A",
    "The",
    " red",
    "",
    "It is red",
    "B.",
    "no",
    "\u2581red",
    "\n",
    "<think>",
    "\ufffd",
)
NUMBERS = (0, -1, 1, 1.5, -0.0, 1e308, -1e308, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30)
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    *NUMBERS,
    "",
    "x",
    "\0",
    "a\nb",
    "\u202e",
    "é",
    "\ud800",
    [],
    {},
    [None],
    [[]],
    {"a": None},
)
ACTIONS = ("annotate", "neutralise", "escalate", "debias", "rerank", "abstain", "ladder")
PROBES: tuple[str, ...] = (
    "noop",
    "benign",
    "permuted_options",
    "question_first",
    "misleading_description",
    "unrelated_facts",
)
PROBES += (
    "ocr_noise",
    "neutral_text",
    "noise",
    "black",
    "white",
    "irrelevant_image",
    "screenshot",
    "zzz",
    "prior",
)
FIELDS: dict[str, tuple[Any, ...]] = {
    "max_tokens": (1, 7),
    "n": (1, 2, 0),
    "temperature": (0, 1.0),
    "logprobs": (True, False),
    "top_logprobs": (0, 5, 21),
    "stop": ("a", ["b"]),
    "tools": ([], [{"type": "function", "function": {"name": "f"}}]),
    "response_format": ({"type": "json_object"},),
    "stream_options": ({"include_usage": True},),
    "continue_final_message": (True,),
    "return_token_ids": (True,),
    "prompt_logprobs": (0, 1),
    "cache_salt": ("x",),
    "answer": TEXTS,
}
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
    requests: int
    ok: int
    refused: int
    engine_error: int
    internal_error: int
    unhandled: int
    malformed: int
    hung: int
    lost: int
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


def damaged(document: Any, random: Random, share: float) -> Any:
    """A copy in which about this share of the values are odd, missing, doubled or under another name."""
    if random.random() < share / 2:
        return copy.deepcopy(random.choice(ODD))
    if isinstance(document, dict):
        kept = {key: value for key, value in document.items() if random.random() > share / 3}
        changed = {
            key + ("x" if random.random() < share / 10 else ""): damaged(value, random, share)
            for key, value in kept.items()
        }
        if random.random() < share:
            changed[random.choice(["type", "text", "content", "image_url", "name"])] = random.choice(ODD)
        return changed
    if isinstance(document, list):
        entries = [damaged(value, random, share) for value in document if random.random() > share / 3]
        return entries * (random.randint(2, 4) if random.random() < share / 2 else 1)
    return document


def written(document: Any) -> bytes:
    """JSON with everything that Python writes: infinities, half characters, large numbers."""
    return json.dumps(document).encode()


def bytes_damaged(data: bytes, random: Random) -> bytes:
    """The same with a few wrong bytes, or cut off."""
    damaged_data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if damaged_data:
            damaged_data[random.randrange(len(damaged_data))] = random.randrange(256)
    return bytes(
        damaged_data[: random.randint(0, len(damaged_data))] if random.random() < 0.3 else damaged_data
    )


# Bodies of clients.


def body_of(random: Random, *, share: float) -> Any:
    """A chat request with every field now and then; `share` of its values are odd."""
    messages = [_message(random) for _ in range(random.randint(0, 3))]
    if random.random() < 0.7 or not messages:
        messages.append(_about_a_picture(random))
    body: JSON = {"model": random.choice([BASE] * 8 + [ADAPTER, "nope"]), "messages": messages}
    if random.random() < 0.5:
        body["stream"] = random.random() < 0.7
    if random.random() < 0.5:
        body["modint"] = _modint(random)
    for name, values in FIELDS.items():
        if random.random() < 0.1:
            body[name] = copy.deepcopy(random.choice(values))
    return damaged(body, random, share) if share else body


def _about_a_picture(random: Random) -> JSON:
    texts = [{"type": "text", "text": random.choice(TEXTS)} for _ in range(random.randint(1, 2))]
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}, *texts]}


def _message(random: Random) -> JSON:
    role = random.choice(["user", "user", "system", "assistant", "tool", "developer"])
    if random.random() < 0.3:
        return {"role": role, "content": random.choice(TEXTS)}
    return {"role": role, "content": [_part(random) for _ in range(random.randint(0, 4))]}


def _part(random: Random) -> Any:
    kind = random.random()
    if kind < 0.45:
        return {"type": "text", "text": random.choice(TEXTS)}
    if kind < 0.85:
        return {"type": "image_url", "image_url": {"url": random.choice(PICTURES)}}
    return random.choice(
        [
            {"type": "image_url", "image_url": PICTURE},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            {"type": "text", "text": QUESTION, "uuid": "x"},
            {"type": "refusal", "refusal": "no"},
            {"type": "thinking", "thinking": "x"},
            "text",
        ]
    )


def _modint(random: Random) -> JSON:
    fields: dict[str, tuple[Any, ...]] = {
        "mode": ("on", "off"),
        "relevant": ("image", "text", "both", "auto"),
        "context": TEXTS,
        "question": TEXTS,
        "needs": ("image", ["image", "text"]),
        "deadline_s": (0.01, 1, 60),
        "action": ACTIONS,
    }
    chosen = {name: random.choice(values) for name, values in fields.items() if random.random() < 0.3}
    if random.random() < 0.3:
        chosen["probes"] = random.sample(PROBES, random.randint(0, 4))
    return chosen


# Replies of an engine.


def completion_of(body: JSON, random: Random) -> JSON:
    """What an engine might answer to a body, all of it well formed."""
    text = random.choice(WORDS)
    tokens = [text] if random.random() < 0.7 else text.split(" ")
    entries = [_entry(token, body.get("top_logprobs") or 0, random) for token in tokens]
    choice: JSON = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": entries} if body.get("logprobs") else None,
        "finish_reason": random.choice(["stop", "length"]),
    }
    if body.get("return_token_ids"):
        choice["token_ids"] = list(range(len(tokens)))
    reply: JSON = {"id": "c", "object": "chat.completion", "created": 1, "model": body.get("model")}
    reply["choices"] = [choice]
    reply["usage"] = {"prompt_tokens": 40, "completion_tokens": len(tokens), "total_tokens": 41}
    if body.get("prompt_logprobs") is not None:
        entry = {"logprob": -random.random(), "rank": 1, "decoded_token": text}
        reply["prompt_logprobs"], reply["prompt_token_ids"] = [None, {"1": entry}], [0, 1]
    return reply


def _entry(token: str, top: Any, random: Random) -> JSON:
    count = top if isinstance(top, int) else 5
    words = random.sample(WORDS, random.randint(0, 5))[:count]
    listed = [{"token": word, "logprob": -random.random() * 8, "bytes": None} for word in words]
    return {"token": token, "logprob": -random.random() * 5, "bytes": None, "top_logprobs": listed}


def chunks_of(completion: JSON) -> list[Any]:
    """The same answer as chunks of a stream."""
    choice = completion["choices"][0]
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": completion["model"]}

    def chunk(delta: JSON, finish: str | None = None, **more: Any) -> JSON:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}

    return [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": choice["message"]["content"]}, logprobs=choice["logprobs"]),
        chunk({}, choice["finish_reason"]),
        {**head, "choices": [], "usage": completion["usage"]},
    ]


@dataclass
class Script:
    """How the engine answers one request. harm: which of its replies are damaged, and in what."""

    random: Random
    harm: Literal["none", "anything", "beside", "extras"] = "none"
    share: float = 0.05
    text: str | None = None  # of the client's own call

    def reply(self, body: JSON) -> tuple[JSON, bool]:
        """A reply, and whether anything in it may be damaged."""
        is_main = self.text is None and body.get("model") == BASE and "max_tokens" not in body
        completion = completion_of(body, self.random)
        if is_main:
            self.text = completion["choices"][0]["message"]["content"]
        if self.harm == "extras" and is_main:
            for holder, name in ((completion, "usage"), (completion["choices"][0], "logprobs")):
                holder[name] = damaged(holder[name], self.random, 4 * self.share)
            if not _is_json(completion):
                self.harm = "anything"
        return completion, self.harm == "anything" or (self.harm == "beside" and not is_main)

    def whole(self, body: JSON) -> bytes:
        completion, may_damage = self.reply(body)
        if not may_damage or self.random.random() < 0.3:
            return written(completion)
        data = written(damaged(completion, self.random, self.share))
        return bytes_damaged(data, self.random) if self.random.random() < 0.1 else data

    def stream(self, body: JSON) -> bytes:
        completion, may_damage = self.reply(body)
        parts: Any = chunks_of(completion)
        if may_damage:
            parts = damaged(parts, self.random, self.share)
        events = [b"data: " + written(part) for part in (parts if isinstance(parts, list) else [parts])]
        data = b"\n\n".join([*events, b"data: [DONE]\n\n"])
        return bytes_damaged(data, self.random) if may_damage and self.random.random() < 0.1 else data


def _is_json(document: Any) -> bool:
    """Whether the document is still JSON as it is written: half a character is not."""
    try:
        return bool(orjson.loads(written(document)) is not None)
    except orjson.JSONDecodeError:
        return False


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
        return self.script.whole(json_object(body))

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        data = self.script.stream(json_object(body))

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
            requests=count,
            **{name: self.counts[name] for name in list(Row.__dataclass_fields__)[3:12]},
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
                status, answer = await _sent(app, raw, path, headers if self.side == "client" else {})
        except TimeoutError:
            self._found("hung", number, raw, "")
            return
        except Exception as exc:  # noqa: BLE001 - what leaves the app is what is looked for
            self._found("unhandled", number, raw, repr(exc))
            return
        trace = log.last[1] if log.last else ""
        if b'"internal_error"' in answer:
            self._found("internal_error", number, raw, trace)
            return
        if log.last and log.last[0] == "step_failed":
            self._found("steps_failed", number, raw, trace)
        if not is_well_formed(status, answer):
            self._found("malformed", number, raw, answer[:300].decode("utf-8", "replace"))
        if engine.script.harm in ("beside", "extras") and not _holds(status, answer, engine.script.text):
            self._found("lost", number, raw, f"{status} {answer[:500]!r}")
        self.counts["ok" if status == 200 else "refused" if status < 500 else "engine_error"] += 1

    def _request(self, random: Random) -> tuple[bytes, str]:
        if self.side == "engine":
            body = body_of(Random(0), share=0) | {"messages": [_about_a_picture(random)], "model": BASE}
            body = {"model": BASE, "messages": body["messages"], "stream": random.random() < 0.5}
            body["modint"] = {"relevant": "image", "action": random.choice(ACTIONS)}
            return written(body), CHAT
        path = random.choice([CHAT] * 7 + [CHECK, COMPLETIONS])
        body = body_of(random, share=random.choice([0, 0.01, 0.03, 0.1]))
        if isinstance(body, dict):
            more = {CHECK: {"answer": random.choice(TEXTS)}, COMPLETIONS: {"prompt": "x"}, CHAT: {}}[path]
            body = more | body
        raw = written(body)
        return (bytes_damaged(raw, random) if random.random() < 0.03 else raw), path

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


def is_well_formed(status: int, answer: bytes) -> bool:
    """Whether an answer is what OpenAI's clients read: an object, an envelope, or frames up to [DONE]."""
    if answer.startswith(b"data:") or (status == 200 and b"data: [DONE]" in answer[-20:]):
        return answer.endswith(b"data: [DONE]\n\n")
    try:
        document = json.loads(answer)
    except ValueError:
        return False
    if status == 200:
        return isinstance(document, dict)
    error = document.get("error")
    return isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}


def _holds(status: int, answer: bytes, text: str | None) -> bool:
    """Whether the client got the engine's text, or what a policy put in its place."""
    if b'"mitigation":{' in answer:
        return True
    if status != 200 or text is None:
        return False
    if not answer.startswith(b"data:"):
        return bool(orjson.loads(answer)["choices"][0]["message"]["content"] == text)
    return text_of(chunks(answer)) == text


async def _sent(app: FastAPI, raw: bytes, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """One request over ASGI: its status and its whole answer."""
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
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages[1:])
