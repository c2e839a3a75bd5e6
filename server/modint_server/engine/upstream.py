"""The engine as the gateway sees it: one pooled HTTP client, a timeout everywhere, and what it can do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import aiohttp
import orjson

from modint_guard.chat.images import neutral_image
from modint_guard.endpoint import TOP_LOGPROBS
from modint_guard.errors import EndpointError, EndpointTimeout, EndpointUnreachable
from modint_guard.probing.teacher_forcing import forced_body
from modint_guard.types import JSON
from modint_server.errors import kind_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
METRICS = "/metrics"
MAX_ERROR_BYTES = 64 * 1024
_SAYS_NOTHING = (401, 403, 408, 429)  # refusals that tell nothing of what the engine can do
_KEPT_S = 4.0  # an idle connection: less than the 5 s after which uvicorn, and so vLLM, closes it
# A connection that was closed, or could not be made: all before the first byte of an answer.
_CLOSED = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionResetError)


class Upstream:
    """Base URL or Unix socket, our key, our timeouts. Nothing of a client's headers is passed on."""

    def __init__(
        self,
        base_url: str,
        *,
        uds: Path | None = None,
        api_key: str | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 300.0,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.on_failure: Callable[[str], None] = lambda kind: None
        self._uds = uds
        self._headers = {"accept-encoding": "identity"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._sessions: tuple[aiohttp.ClientSession, ...] = ()

    async def __aenter__(self) -> Self:
        # Kept connections, then a fresh one: any number of those may have been closed under us.
        self._sessions = (self._session(keepalive_timeout=_KEPT_S), self._session(force_close=True))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for session in self._sessions:
            await session.close()
        self._sessions = ()

    def _session(self, **kept: Any) -> aiohttp.ClientSession:
        # The gateway bounds the requests in flight itself: a limit here would queue them out of sight.
        connector = (
            aiohttp.UnixConnector(str(self._uds), limit=0, **kept)
            if self._uds
            else aiohttp.TCPConnector(limit=0, **kept)
        )
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_timeout_s, sock_read=self._read_timeout_s
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers=self._headers,
            trust_env=False,
            auto_decompress=False,
        )

    async def complete(self, body: JSON) -> JSON:
        """A chat body → its completion (a core `Complete`); raises EndpointError."""
        return json_object(await self.post(CHAT, orjson.dumps({**body, "stream": False})))

    async def models(self) -> list[JSON]:
        """The `data` of the engine's model list; raises EndpointError."""
        async with self._opened("GET", MODELS, None) as response:
            listed = json_object(await self._read(response))
        if not isinstance(data := listed.get("data"), list):
            raise EndpointError(
                f"{self.base_url}{MODELS} holds no list: is this an OpenAI-compatible server?"
            )
        return [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    async def metrics(self) -> bytes:
        """The engine's own Prometheus page; raises EndpointError."""
        async with self._opened("GET", METRICS, None) as response:
            return await self._read(response)

    async def post(self, path: str, body: bytes) -> bytes:
        """The whole answer's bytes; raises EndpointError."""
        async with self._opened("POST", path, body) as response:
            return await self._read(response)

    @asynccontextmanager
    async def stream(self, path: str, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer's bytes as they come; an error before or between them is an EndpointError."""
        async with self._opened("POST", path, body) as response:
            if response.content_type != "text/event-stream":
                raise self.failed(EndpointError(f"a stream was asked for and {response.content_type} came"))
            yield self._pieces(response)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self.failed(_endpoint_error(exc)) from exc

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for piece in response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self.failed(_endpoint_error(exc)) from exc

    @asynccontextmanager
    async def _opened(
        self, method: str, path: str, body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            response = await self._sent(method, path, body)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self.failed(_endpoint_error(exc)) from exc
        async with response:
            if response.status != 200:
                raise self.failed(await _refusal(response))
            yield response

    async def _sent(self, method: str, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        assert self._sessions, "use the upstream inside `async with`"
        headers = {"content-type": "application/json"} if body is not None else None
        url = self.base_url + path
        over_kept, over_fresh = (
            partial(session.request, method, url, data=body, headers=headers, allow_redirects=False)
            for session in self._sessions
        )
        with suppress(*_CLOSED):
            return await over_kept()
        return await over_fresh()

    def failed(self, error: EndpointError) -> EndpointError:
        """Counts a failure and hands it back to be raised."""
        self.on_failure(kind_of(error))
        return error


def json_object(data: bytes) -> JSON:
    """Raises EndpointError where the engine answered 200 with something else (HTML, half a document)."""
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise EndpointError("the engine's answer is no JSON") from exc
    if not isinstance(parsed, dict):
        raise EndpointError("the engine's answer is no JSON object")
    return parsed


async def _refusal(response: aiohttp.ClientResponse) -> EndpointError:
    try:
        body = await response.content.read(MAX_ERROR_BYTES)
    except (aiohttp.ClientError, OSError, TimeoutError):
        body = b""
    return EndpointError(
        f"the engine answered with status {response.status}", status=response.status, body=body
    )


def _endpoint_error(exc: Exception) -> EndpointError:
    if isinstance(exc, TimeoutError):
        return EndpointTimeout("the engine did not answer in time")
    if isinstance(exc, aiohttp.ClientConnectorError | aiohttp.ServerDisconnectedError | OSError):
        return EndpointUnreachable(f"the engine cannot be reached ({type(exc).__name__})")
    return EndpointError(f"the engine broke the connection ({type(exc).__name__})")


@dataclass(frozen=True)
class Model:
    """One line of the engine's model list: a base has no parent."""

    id: str
    parent: str | None
    created: int
    max_model_len: int | None

    def to_json(self) -> JSON:
        card = {"id": self.id, "object": "model", "created": self.created, "owned_by": "modint-guard"}
        extra: JSON = {"parent": self.parent}
        if self.max_model_len is not None:
            extra["max_model_len"] = self.max_model_len
        return {**card, **extra}


@dataclass(frozen=True)
class Capabilities:
    """What the engine showed that it can do when it was asked."""

    models: tuple[Model, ...]
    top_logprobs: int  # the most of them that it takes; 0 where it gives none
    images: bool
    teacher_forcing: bool = False  # it scores an answer that is given to it
    problems: tuple[str, ...] = ()

    @property
    def logprobs(self) -> bool:
        return self.top_logprobs > 0

    @property
    def lora(self) -> tuple[str, ...]:
        return tuple(model.id for model in self.models if model.parent is not None)

    def to_json(self) -> JSON:
        return {
            "models": [model.id for model in self.models],
            "lora": list(self.lora),
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "images": self.images,
            "teacher_forcing": self.teacher_forcing,
        }


def models_of(listed: list[JSON]) -> tuple[Model, ...]:
    """The engine's cards without its paths; a parent that is not served itself counts as none."""
    ids = {entry["id"] for entry in listed}
    return tuple(_model(entry, ids) for entry in listed)


def _model(entry: JSON, ids: set[str]) -> Model:
    parent: Any = entry.get("parent")
    known = isinstance(parent, str) and parent in ids and parent != entry["id"]
    created, length = entry.get("created"), entry.get("max_model_len")
    return Model(
        id=entry["id"],
        parent=parent if known else None,
        created=created if isinstance(created, int) else 0,
        max_model_len=length if isinstance(length, int) else None,
    )


async def check_capabilities(upstream: Upstream, *, timeout_s: float = 120.0) -> Capabilities:
    """Asks the engine, rather than trusting its name: model list, first-token logprobs, an image.

    Raises EndpointError while the engine cannot be reached or has no model; what it merely cannot do is
    reported in the result, with a sentence each.
    """
    models = models_of(await upstream.models())
    base = next((model.id for model in models if model.parent is None), None)
    if base is None:
        raise EndpointError("the engine lists no base model: start it with one")
    picture = {"type": "image_url", "image_url": {"url": neutral_image((64, 64))}}
    top = await _most_logprobs(upstream, base, timeout_s)
    image = await _tried(upstream, base, [picture, {"type": "text", "text": "Say yes."}], top, timeout_s)
    problems = [sentence] if (sentence := _shortage(top)) else []
    if image is None:
        problems.append("the engine refuses images: there is nothing to guard in text alone")
    # vLLM's CPU engine died of an adapter's prompt log-probabilities (a shape error in its LoRA arithmetic):
    # beside adapters longer answers are judged at their first word, and nobody asks for those.
    alone = all(model.parent is None for model in models)
    forcing = bool(top) and alone and await _scores_answers(upstream, base, timeout_s)
    return Capabilities(models, top, image is not None, forcing, tuple(problems))


async def _scores_answers(upstream: Upstream, model: str, timeout_s: float) -> bool:
    """Whether the engine gives the log-probabilities of a prompt that ends in an answer."""
    asked: JSON = {"model": model, "messages": [{"role": "user", "content": "Say yes."}], "temperature": 0}
    completion = await _answered(upstream, forced_body(asked, "yes", 1), timeout_s)
    try:
        return completion is not None and "logprob" in next(iter(completion["prompt_logprobs"][-1].values()))
    except (AttributeError, IndexError, KeyError, TypeError, StopIteration):
        return False


async def _most_logprobs(upstream: Upstream, model: str, timeout_s: float) -> int:
    """The largest of TOP_LOGPROBS that the engine takes; 0 where it refuses them all or leaves them out."""
    for top in TOP_LOGPROBS:
        if (completion := await _tried(upstream, model, "Say yes.", top, timeout_s)) is not None:
            return top if _has_logprobs(completion) else 0
    return 0


def _shortage(top: int) -> str | None:
    most = TOP_LOGPROBS[0]
    if not top:
        return "the engine gives no logprobs: short answers are generated again, longer ones stay unscored"
    return (
        f"the engine takes top_logprobs {top}, not {most}: divergences are known less well"
        if top < most
        else None
    )


async def _tried(upstream: Upstream, model: str, content: object, top: int, timeout_s: float) -> JSON | None:
    """One token's completion, None if the engine refuses such a request; an engine that is gone raises."""
    body: JSON = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
    }
    if top:
        body |= {"logprobs": True, "top_logprobs": top}
    return await _answered(upstream, body, timeout_s)


async def _answered(upstream: Upstream, body: JSON, timeout_s: float) -> JSON | None:
    """The completion; None where the engine refuses the request itself."""
    try:
        async with asyncio.timeout(timeout_s):
            return await upstream.complete(body)
    except TimeoutError as exc:
        raise EndpointTimeout(f"the engine did not answer one token within {timeout_s:g} s") from exc
    except EndpointError as exc:
        if exc.status is not None and 400 <= exc.status < 500 and exc.status not in _SAYS_NOTHING:
            return None
        raise


def _has_logprobs(completion: JSON) -> bool:
    try:
        return bool(completion["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
    except (KeyError, IndexError, TypeError):
        return False
