"""A scripted vLLM on a real socket: a function of the body decides what it answers, faults included."""

import asyncio
import base64
import io
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from modint_guard.probing.teacher_forcing import LAST_ROWS

JSON = dict[str, Any]
BASE, ADAPTER = "tinyworld-base", "robust-lora"


@dataclass(frozen=True)
class Answer:
    """The answer to one call: its text, and the probabilities of words in its place (`top`).

    For an answer of several words `tops` has them for each place. others: the further answers, if several are
    asked for; without them all are the same. raw: the kind and the bytes of a whole answer, as they are sent.
    """

    text: str
    top: dict[str, float] = field(default_factory=dict)
    tops: tuple[dict[str, float], ...] = ()
    delay_s: float = 0.0
    fault: str | None = None
    others: tuple["Answer", ...] = ()
    raw: tuple[str, bytes] | None = None

    def all(self, body: JSON) -> list["Answer"]:
        """As many answers as a body asks for."""
        return [self, *(self.others or (self,) * ((body.get("n") or 1) - 1))][: body.get("n") or 1]


Script = Callable[[JSON], Answer]


def text_of(body: JSON) -> str:
    """All text of a conversation."""
    texts = []
    for message in body["messages"]:
        content = message["content"] or ""
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        texts += parts
    return "\n".join(texts)


def is_grey(body: JSON) -> bool:
    """Whether every image of the conversation is of one grey."""
    images = [part for m in body["messages"] if isinstance(m["content"], list) for part in m["content"]]
    urls = [part["image_url"]["url"] for part in images if part.get("type") == "image_url"]
    return all(_is_one_grey(url) for url in urls)


def _is_one_grey(url: str) -> bool:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        low, high = image.convert("L").getextrema()
    return bool(low == high)


def misled(body: JSON) -> Answer:
    """A model that believes the caption: the picture says red, the context says blue."""
    context, picture = "caption" in text_of(body), not is_grey(body)
    if context:
        return Answer("blue", {"blue": 0.95, "red": 0.04})
    if picture:
        return Answer("red", {"red": 0.991, "blue": 0.008})
    return Answer("blue", {"blue": 0.5, "red": 0.5})


def steady(body: JSON) -> Answer:
    """A model that looks at the picture, whatever the text says."""
    return Answer("red", {"red": 0.96, "blue": 0.02} if not is_grey(body) else {"red": 0.4, "blue": 0.35})


def talkative(body: JSON) -> Answer:
    """`misled` in three words: the first two are the same under every view."""
    answer = misled(body)
    last = {f" {word}": p for word, p in answer.top.items()}
    return Answer(f"It is {answer.text}", tops=({"It": 0.95, "A": 0.05}, {" is": 0.95, " was": 0.05}, last))


def lengthy(tokens: int, *, stream: bool = False, count: int = 1) -> Answer:
    """An answer of so many tokens with 20 alternatives each, 2 kB a token; every token is the same.

    count: how many answers, each of another token.
    """
    listed = [
        {"token": f" word{n}", "logprob": -n - 0.01, "bytes": list(f" word{n}".encode())} for n in range(20)
    ]
    entries = [json.dumps({**listed[n], "top_logprobs": listed}) for n in range(count)]
    head = '{"id": "chatcmpl-1", "created": 7, "model": "m", "choices": ['
    if stream:
        delta = f'"delta": {{"content": " word0"}}, "logprobs": {{"content": [{entries[0]}]}}'
        said = f'data: {head}{{"index": 0, {delta}}}]}}\n\n'
        end = f'data: {head}{{"index": 0, "delta": {{}}, "finish_reason": "stop"}}]}}\n\ndata: [DONE]\n\n'
        return Answer("", raw=("text/event-stream", (said * tokens + end).encode()))
    choices = (
        f'{{"index": {n}, "finish_reason": "stop", "message": {{"content": "{f" word{n}" * tokens}"}}, '
        f'"logprobs": {{"content": [{",".join([entry] * tokens)}]}}}}'
        for n, entry in enumerate(entries)
    )
    return Answer("", raw=("application/json", f"{head}{', '.join(choices)}]}}".encode()))


def is_main(body: JSON) -> bool:
    """Whether a call is the client's own request: it has both the picture and the caption."""
    return "caption" in text_of(body) and not is_grey(body)


@dataclass
class FakeUpstream:
    """Start it with `running`. `script` answers chat bodies; `calls` keeps these, `heads` their headers."""

    script: Script = misled
    calls: list[JSON] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    aborts: int = 0
    open: int = 0
    model_list: list[JSON] = field(
        default_factory=lambda: [
            {
                "id": BASE,
                "object": "model",
                "created": 1,
                "owned_by": "vllm",
                "root": "/secret",
                "parent": None,
            },
            {
                "id": ADAPTER,
                "object": "model",
                "created": 2,
                "owned_by": "vllm",
                "root": "/secret",
                "parent": BASE,
            },
        ]
    )
    models_delay_s: float = 0.0
    logprobs: bool = True
    scores: bool = False  # whether it gives log-probabilities of a prompt that ends in an answer
    last_rows: bool | None = False  # whether it scores the end of a prompt alone if asked; None: it refuses
    priorities: bool = False  # whether its scheduler has them; if not, they are refused
    max_logprobs: int = 20  # more are refused; with 0 `logprobs` is refused too
    finish_with_text: bool = False
    stream_end: bytes = b"data: [DONE]\n\n"
    retry_after: str = "7"
    extra: JSON = field(default_factory=dict)  # further fields of every chunk
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    sent: bytes = b""  # the last streamed answer, as it left
    damage: Callable[[JSON, JSON], JSON] = lambda body, answer: answer  # of completions and chunks
    page: bytes = b'# HELP vllm:x One.\nvllm:x{a="b"} 1.0\n' * 20_000  # its own metrics
    responses: bool = False  # whether it has /v1/responses
    further: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # answers of other routes, with kind
    url: str = ""

    def forget(self) -> None:
        """Drops what was received so far: the calls of the capability check."""
        for received in (self.calls, self.raw, self.heads, self.paths):
            received.clear()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        path = first.split()[1]
        self.heads.append(headers)
        self.paths.append(path)
        if path == "/v1/models":
            await asyncio.sleep(self.models_delay_s)
            return await _whole(writer, json.dumps({"object": "list", "data": self.model_list}).encode())
        if path == "/metrics":
            return await _whole(writer, self.page, kind="text/plain; version=0.0.4")
        if (answer := self.further.get(path)) is not None:
            self.raw.append(raw)
            return await _whole(writer, answer[1], kind=answer[0])
        if path == "/v1/responses" and self.responses:
            self.raw.append(raw)
            self.calls.append(json.loads(raw))
            return await self._respond(json.loads(raw), writer)
        if "/completions" not in path:
            return await _whole(writer, b'{"detail":"Not Found"}', status=404)
        self.raw.append(raw)
        body = json.loads(raw)
        if path == "/v1/completions":
            return await _whole(writer, b'{"id":"cmpl-1", "choices":[{"text":"five","index":0}]}')
        self.calls.append(body)
        self.open += 1
        answering = asyncio.ensure_future(self._chat(body, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.aborts += 1
                return False
            return await answering
        finally:
            self.open -= 1
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _chat(self, body: JSON, writer: asyncio.StreamWriter) -> bool:
        answer = self.script(body)
        await asyncio.sleep(answer.delay_s)
        if answer.raw is not None:
            return await _whole(writer, answer.raw[1], kind=answer.raw[0])
        if body.get("logprobs") and (body.get("top_logprobs") or 1) > self.max_logprobs:
            error = b'{"error":{"message":"too many logprobs","type":"BadRequest","param":null,"code":400}}'
            return await _whole(writer, error, status=400)
        if body.get("tools") == []:  # as vLLM does
            error = b'{"error":{"message":"`tools` must not be empty","type":"BadRequest","code":400}}'
            return await _whole(writer, error, status=400)
        if body.get("priority") and not self.priorities:
            error = (
                b'{"error":{"message":"no priority scheduling","type":"BadRequest","param":null,"code":400}}'
            )
            return await _whole(writer, error, status=400)
        match answer.fault:
            case "hang":
                await asyncio.sleep(3600)
            case "500":
                error = b'{"error":{"message":"out of memory","type":"ServerError","param":null,"code":500}}'
                return await _whole(writer, error, status=500)
            case "400":
                error = b'{"object":"error","message":"too long","type":"BadRequest","param":null,"code":400}'
                return await _whole(writer, error, status=400)
            case "400 in two pieces":
                error = b'{"error":{"message":"too long for me","type":"BadRequest","param":null,"code":400}}'
                head = f"HTTP/1.1 400 X\r\ncontent-length: {len(error)}\r\nconnection: close\r\n\r\n".encode()
                for piece in (head + error[:30], error[30:]):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.05)
                return False
            case "429":
                error = b'{"error":{"message":"slow down","code":429}}'
                return await _whole(writer, error, status=429, retry_after=self.retry_after)
            case "401":
                return await _whole(writer, b'"Unauthorized"', status=401)
            case "html":
                return await _whole(writer, b"<html>bad gateway</html>", status=502, kind="text/html")
            case "html 200":
                return await _whole(writer, b"<html>hello</html>", kind="text/html")
            case "close":
                return False
        if "vllm_xargs" in body and self.last_rows is None:
            error = b'{"error":{"message":"extra fields","type":"BadRequest","param":null,"code":400}}'
            return await _whole(writer, error, status=400)
        if self.scores and "prompt_logprobs" in body:
            return await _whole(writer, json.dumps(self._scored(body)).encode())
        if body.get("stream"):
            return await self._stream(body, answer, writer)
        completion = self.damage(body, self._completion(body, answer))
        return await _whole(writer, json.dumps(completion).encode())

    def _logprobs(self, body: JSON, answer: Answer) -> JSON | None:
        if not body.get("logprobs") or not self.logprobs:
            return None
        tokens = _tokens(answer.text) if answer.tops else [answer.text]
        tops = answer.tops or (answer.top,)
        return {"content": [self._entry(body, *pair) for pair in zip(tokens, tops, strict=True)]}

    def _entry(self, body: JSON, token: str, top: dict[str, float]) -> JSON:
        ranked = sorted(top.items(), key=lambda item: -item[1])[: body.get("top_logprobs") or 0]
        listed = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in ranked]
        logprob = math.log(top.get(token, 1e-9))
        return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": listed}

    def _scored(self, body: JSON) -> JSON:
        """The answer at the end of the prompt, each of its words as probable as after this body; of what
        stands around it, nothing is known.
        """
        message = body["messages"][-1]
        called = "".join(_written(call["function"]) for call in message.get("tool_calls") or ())
        words = _tokens(called or message["content"])
        view = self.script({**body, "messages": body["messages"][:-1]})
        tops = (*view.tops, {}) if called else view.tops
        before = len(words) - len(tops)
        tops = (*({},) * before, *tops) if view.tops and before >= 0 else (view.top,) * len(words)
        entries = [_prompt_entry(*pair) for pair in zip(words, tops, strict=True)]
        ids = [1, *map(_token_id, words)]
        if self.last_rows:  # the template's own words stand in front of the answer
            entries = [*(_prompt_entry("said:", {}) for _ in range(9)), *entries]
            ids = [1, *(_token_id("said:") for _ in range(9)), *ids[1:]]
            entries = entries[-(body.get("vllm_xargs") or {}).get(LAST_ROWS, len(entries)) :]
        return {
            **self._completion(body, Answer("!")),
            "usage": {"prompt_tokens": 40 + len(words), "completion_tokens": 1},
            "prompt_logprobs": [None, *entries],
            "prompt_token_ids": ids,
        }

    async def _respond(self, body: JSON, writer: asyncio.StreamWriter) -> bool:
        """A response of the Responses API by the same script, whole or as a stream."""
        try:
            answer = self.script(_as_chat(body))
            asks = "message.output_text.logprobs" in (body.get("include") or ())
        except (AttributeError, KeyError, TypeError):  # as an engine refuses what it cannot read
            answer, asks = Answer("", fault="400"), False
        await asyncio.sleep(answer.delay_s)
        if answer.fault in ("400", "500"):
            error = b'{"error":{"message":"too long","type":"BadRequest","param":null,"code":400}}'
            return await _whole(writer, error, status=int(answer.fault))
        listed = self._logprobs({"logprobs": asks, "top_logprobs": body.get("top_logprobs")}, answer)
        entries = listed["content"] if listed else []
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": entries or None}
        item = {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }
        response = {
            "id": "resp_1",
            "object": "response",
            "created_at": 7,
            "status": "completed",
            "model": body["model"],
            "output": [item],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": body.get("top_logprobs"),
            "usage": {"input_tokens": 40, "output_tokens": 2, "total_tokens": 42},
        }
        if not body.get("stream"):
            return await _whole(writer, json.dumps(self.damage(body, response)).encode())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        at = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}
        begun = {**item, "status": "in_progress", "content": []}
        events: list[JSON] = [
            {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
            {"type": "response.output_item.added", "output_index": 0, "item": begun},
            {"type": "response.content_part.added", **at, "part": {**part, "text": "", "logprobs": []}},
            {"type": "response.output_text.delta", **at, "delta": answer.text, "logprobs": entries},
            {"type": "response.output_text.done", **at, "text": answer.text, "logprobs": entries},
            {"type": "response.content_part.done", **at, "part": part},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": response},
        ]
        self.sent = b""
        for number, event in enumerate(events[: 4 if answer.fault == "die" else 8]):
            data = json.dumps({**self.damage(body, event), "sequence_number": number})
            frame = f"event: {event['type']}\ndata: {data}\n\n".encode()
            self.sent += frame
            writer.write(frame)
        await writer.drain()
        return False

    def _completion(self, body: JSON, answer: Answer) -> JSON:
        choices = [self._choice(body, each, index) for index, each in enumerate(answer.all(body))]
        usage = {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 7,
            "model": body["model"],
            "choices": choices,
            "usage": usage,
            "future_field": {"kept": True},
        }

    def _choice(self, body: JSON, answer: Answer, index: int) -> JSON:
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": index, "message": message, "finish_reason": "stop"}
        choice["logprobs"] = self._logprobs(body, answer)
        if body.get("return_token_ids") and self.scores:
            choice["token_ids"] = [_token_id(token) for token in _tokens(answer.text)]
        return choice

    async def _stream(self, body: JSON, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        self.sent = b""
        frames = [
            frame for index, each in enumerate(answer.all(body)) for frame in self._frames(body, each, index)
        ]
        for number, chunk in enumerate(frames):
            if number == 2 and answer.fault:
                await self._fail_midway(answer.fault, writer)
                return False
            await self._frame(writer, json.dumps(self.damage(body, chunk), separators=(", ", ": ")))
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42}
            last_chunk = self.damage(body, {"id": "chatcmpl-1", "choices": [], "usage": usage})
            await self._frame(writer, json.dumps(last_chunk))
        self.sent += self.stream_end
        writer.write(self.stream_end)
        await writer.drain()
        return False

    def _frames(self, body: JSON, answer: Answer, index: int) -> list[JSON]:
        """The chunks of one answer."""
        half = max(1, len(answer.text) // 2)
        last = {} if not self.finish_with_text else {"content": " indeed"}
        frames = [
            self._chunk(body, {"role": "assistant", "content": ""}),
            self._chunk(body, {"content": answer.text[:half]}, self._logprobs(body, answer)),
            self._chunk(body, {"content": answer.text[half:]}),
            self._chunk(body, last, finish="stop"),
        ]
        for frame in frames:
            frame["choices"][0]["index"] = index
        return frames

    async def _fail_midway(self, fault: str, writer: asyncio.StreamWriter) -> None:
        match fault:
            case "half frame":
                writer.write(b'data: {"id": "chatcmpl-1", "choi')
            case "error frame":
                await self._frame(writer, '{"error": {"message": "engine dead", "type": "E", "code": 500}}')
            case "not JSON":
                await self._frame(writer, "{,")
            case "odd frame":
                await self._frame(writer, '{"choices": ["neither", "is an object"]}')
            case "wait":
                await self.gate.wait()
        with suppress(ConnectionError):
            await writer.drain()

    async def _frame(self, writer: asyncio.StreamWriter, data: str) -> None:
        frame = f"data: {data}\n\n".encode()
        self.sent += frame
        writer.write(frame)
        await writer.drain()

    def _chunk(
        self, body: JSON, delta: JSON, logprobs: JSON | None = None, finish: str | None = None
    ) -> JSON:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": body["model"]}
        return {**head, "choices": [choice], "future_field": 1, **self.extra}


def _as_chat(body: JSON) -> JSON:
    """A request of the Responses API as a chat body, as far as tests ask."""
    messages = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    items = body["input"] if isinstance(body["input"], list) else [{"role": "user", "content": body["input"]}]
    for item in items:
        content = item.get("content") or ""
        if isinstance(content, list):
            content = [_as_part(part) for part in content]
        messages.append({"role": item.get("role", "assistant"), "content": content})
    return {**body, "messages": messages}


def _as_part(part: JSON) -> JSON:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return {"type": "text", "text": part["text"]}


def _written(function: JSON) -> str:
    return f"<call> {function['name']} {function['arguments']} </call>"


def _tokens(text: str) -> list[str]:
    """Words, each with the blank in front of it and the line ends behind it."""
    return re.split(r"(?= )|(?<=\n)(?=[^\s])", text)


def _token_id(token: str) -> int:
    return int.from_bytes(token.encode()[:6], "big")


def _prompt_entry(token: str, top: dict[str, float]) -> JSON:
    """One position as vLLM writes it: the prompt's own token first."""
    listed = {token: top.get(token, 1e-4)} | top
    return {
        str(_token_id(word)): {"logprob": math.log(p), "rank": 1, "decoded_token": word}
        for word, p in listed.items()
    }


async def _whole(
    writer: asyncio.StreamWriter,
    body: bytes,
    *,
    status: int = 200,
    kind: str = "application/json",
    retry_after: str = "",
) -> bool:
    pause = f"retry-after: {retry_after}\r\n" if retry_after else ""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + pause.encode() + b"connection: close\r\n\r\n" + body)
    await writer.drain()
    return False


@asynccontextmanager
async def running(upstream: FakeUpstream) -> AsyncIterator[FakeUpstream]:
    """Runs the fake on a free port of the loopback interface."""
    tasks: set[asyncio.Task[None]] = set()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await upstream.handle(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(tracked, "127.0.0.1", 0, limit=64 * 2**20)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
