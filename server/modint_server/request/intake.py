"""What a client sent: read with limits, parsed once, checked, and freed of what must not reach the engine."""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from uuid import uuid4

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive

from modint_guard.chat.body import check_image_count, check_media, messages_of, parts_of
from modint_guard.chat.parts import in_one_form
from modint_guard.errors import RequestError
from modint_guard.types import JSON
from modint_server.settings import Settings

TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# The engine trusts these: cache identities, scheduling, templates of the client's own, code to be loaded.
STRIPPED = frozenset(
    {
        "cache_salt",
        "priority",
        "request_id",
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "logits_processors",
    }
)
MAX_DRAINED = 64 * 2**20
_TYPES: Mapping[str, TypeAdapter[Any]] = {"stream": TypeAdapter(bool), "n": TypeAdapter(int)}
_MEDIA = b";base64,"
_MAX_MEDIA = 64  # that are left out where values are counted: each takes a few microseconds
STRIPPED_PREFIXES = ("chat_template",)
TEMPLATE_OPTIONS = "chat_template_kwargs"


@dataclass(frozen=True)
class Incoming:
    """One request body: the document the engine sees, and its bytes as long as nothing had to be changed."""

    body: JSON
    raw: bytes | None
    images: int
    size: int  # bytes of the body as it came, and of the pictures that were fetched for it

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    def bytes(self) -> bytes:
        """The client's own bytes, or the cleaned document where something had to go."""
        return orjson.dumps(self.body) if self.raw is None else self.raw

    def salted(self, key_digest: str) -> "Incoming":
        """With a cache identity of the client's own: it finds no other client's prompt in the cache."""
        salt = sha256(f"cache of {key_digest}".encode()).hexdigest()[:32]
        whole = "-".join(filter(None, (self.body.get("cache_salt"), salt)))
        return replace(self, body={**self.body, "cache_salt": whole}, raw=None)

    def with_usage(self) -> "Incoming":
        """A stream that tells its tokens at the end."""
        wanted = self.body.get("stream_options")
        options = {**(wanted if isinstance(wanted, dict) else {}), "include_usage": True}
        return replace(self, body={**self.body, "stream_options": options}, raw=None)

    def without_modint(self) -> "Incoming":
        """The engine never sees our own field."""
        if "modint" not in self.body:
            return self
        return replace(
            self, body={key: value for key, value in self.body.items() if key != "modint"}, raw=None
        )


def request_id(headers: Mapping[str, str]) -> str:
    """The client's, if it is harmless; else one of ours."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid4().hex


def trace_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The client's W3C trace context, to be passed on; empty without a well-formed `traceparent`."""
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not TRACEPARENT.fullmatch(parent):
        return {}
    return {"traceparent": parent} | ({"tracestate": state} if TRACESTATE.fullmatch(state) else {})


DefaultModel = Callable[[], str]  # raises RequestError if a request has to name its model


async def read_body(receive: Receive, headers: Mapping[str, str], settings: Settings) -> bytes:
    """The request's bytes, counted before anything is parsed; raises RequestError 408, 413, 415."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            "compressed request bodies are refused: send the JSON as it is",
            code="compressed_body",
            status=415,
        )
    declared, limit = headers.get("content-length", ""), settings.max_body_bytes
    body = _Body(limit, is_too_large=declared.isdigit() and int(declared) > limit)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            await body.read(receive)
    except TimeoutError as exc:
        if not body.is_too_large:
            within = f"{settings.body_timeout_s:g} s"
            raise RequestError(
                f"the request body did not arrive within {within}", code="body_timeout", status=408
            ) from exc
    if body.is_too_large:
        raise _too_large(limit)
    return b"".join(body.pieces)


@dataclass
class _Body:
    """A body as it arrives; of one that is longer than `limit` the rest is read and dropped.

    A client that is still sending would not see the answer. More than `MAX_DRAINED` bytes are not read.
    """

    limit: int
    is_too_large: bool
    pieces: list[bytes] = field(default_factory=list)

    async def read(self, receive: Receive) -> None:
        """Reads to the end of the body. Raises ClientLeft."""
        size, more = 0, True
        while more and size <= self.limit + MAX_DRAINED:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            self.is_too_large = self.is_too_large or size > self.limit
            if self.is_too_large:
                self.pieces.clear()
            else:
                self.pieces.append(piece)


class ClientLeft(Exception):  # noqa: N818 - an event, not an error
    """Nobody is there to answer any more."""


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"the request body is larger than {limit} bytes: send less", code="body_too_large", status=413
    )


def read_document(raw: bytes, settings: Settings) -> Incoming:
    """The one parse of a request, its fields unread; raises RequestError."""
    raw = utf8(raw)
    _check_values(raw, settings.max_json_values)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        raise RequestError(f"the request body is no JSON ({where})", code="invalid_json") from exc
    if not isinstance(body, dict):
        raise RequestError("the request body must be a JSON object", code="invalid_json")
    if too_deep(body, settings.max_json_depth):
        raise RequestError(
            f"the request body is nested deeper than {settings.max_json_depth} levels", code="too_deep"
        )
    typed = _typed(body)
    return Incoming(body | typed, None if typed else raw, 0, len(raw))


def _typed(body: JSON) -> JSON:
    """Fields in the types that the gateway reads, where vLLM takes other forms of them: "yes", 0, "2"."""
    found: JSON = {}
    for name, kind in _TYPES.items():
        value = body.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            with contextlib.suppress(ValidationError):
                found[name] = kind.validate_python(value)
    return {name: value for name, value in found.items() if value is not body[name]}


def _check_values(raw: bytes, limit: int) -> None:
    """Raises RequestError for a body of too many values: an empty list takes thirty times its bytes."""
    signs = itertools.product(_without_media(raw), b",[{") if len(raw) > limit else ()
    if sum(itertools.starmap(_count, signs)) > limit:
        raise RequestError(
            f"the request body holds more than {limit} commas and opening brackets: send less",
            code="too_many_values",
        )


def _without_media(raw: bytes) -> Iterator[memoryview]:
    """The pieces of a JSON text between the first media in it. From `;base64,`, which is JSON within a string
    only, to the next quotation mark nothing is a value.
    """
    whole, at = memoryview(raw), 0
    for _ in range(_MAX_MEDIA):
        media = raw.find(_MEDIA, at)
        if media < 0:
            break
        yield whole[at:media]
        at = raw.find(b'"', media)
        if at < 0:
            return
    yield whole[at:]


def _count(raw: memoryview, byte: int) -> int:
    """As `bytes.count`, in a fifth of the time."""
    return int(np.count_nonzero(np.frombuffer(raw, np.uint8) == byte)) if raw else 0


def utf8(raw: bytes) -> bytes:
    """A JSON text in UTF-8 without a byte order mark: Windows' writers send one, or UTF-16, and vLLM reads
    both. The bytes themselves if they are so already, or cannot be read.
    """
    encoding = json.detect_encoding(raw[:4])
    if encoding == "utf-8":
        return raw
    try:
        return raw.decode(encoding).encode()
    except UnicodeError:
        return raw


def too_deep(document: object, limit: int) -> bool:
    """Whether containers are nested more than `limit` levels; a string counts as none."""
    level: list[Any] = [document]
    for _ in range(limit):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def read_chat(document: Incoming, settings: Settings, default_model: DefaultModel) -> Incoming:
    """A chat request, checked and cleaned; raises RequestError.

    document: as `read_document` gives it. default_model: what serves a request that names no model.
    """
    body = document.body
    sent = messages_of(body, max_messages=settings.max_messages)
    messages = in_one_form(sent)
    _check_fields(body, settings)
    parts = list(parts_of(messages))
    images = sum(1 for part in parts if "image_url" in part)
    check_image_count(images, settings.max_images)
    for part in parts:
        check_media(part)
    cleaned, changed = _cleaned(body, settings, default_model)
    if messages is not sent:
        cleaned, changed = {**cleaned, "messages": messages}, True
    stripped_uuid = [part.pop("uuid") for part in parts if "uuid" in part]
    raw = None if changed or stripped_uuid else document.raw
    incoming = Incoming(cleaned, raw, images, document.size)
    return keyed_by_gain(incoming, settings)


def keyed_by_gain(incoming: Incoming, settings: Settings) -> Incoming:
    """The request with the gain in its cache's key: scaled keys are of no use to an engine that scales
    otherwise.
    """
    if settings.image_attention == 1.0:
        return incoming
    salt = {"cache_salt": f"image-attention-{settings.image_attention:g}"}
    return replace(incoming, body={**incoming.body, **salt}, raw=None)


def read_completion(document: Incoming, settings: Settings, default_model: DefaultModel) -> Incoming:
    """A plain completion request: the same limits, no images. The arguments are those of `read_chat`."""
    incoming = read_any(document, settings, default_model)
    _check_prompts(incoming.body, settings)
    return incoming


def read_any(document: Incoming, settings: Settings, default_model: DefaultModel) -> Incoming:
    """A request to any route, its media unread: the same limits. The arguments are those of `read_chat`."""
    _check_fields(document.body, settings)
    cleaned, changed = _cleaned(document.body, settings, default_model)
    return replace(document, body=cleaned, raw=None if changed else document.raw)


def _check_prompts(body: JSON, settings: Settings) -> None:
    """Raises RequestError for too many answers at once."""
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt)
    answers = (len(prompt) if isinstance(prompt, list) and several else 1) * max(
        value for key in ("n", "best_of") if isinstance(value := body.get(key) or 1, int)
    )
    if answers > settings.max_prompts:
        raise RequestError(
            f"prompt and n ask for {answers} answers: this gateway takes {settings.max_prompts}",
            param="prompt",
            code="over_limit",
        )


def _check_fields(body: JSON, settings: Settings) -> None:
    if any("embeds" in key and value is not None for key, value in body.items()):
        raise RequestError(
            "embeddings in place of a prompt are refused", param="prompt_embeds", code="embeds_refused"
        )
    model = body.get("model")
    if model is not None and (not isinstance(model, str) or not model):
        raise RequestError(
            "model must name one of the served models: see /v1/models", param="model", code="invalid_model"
        )
    if not isinstance(body.get("stream", False), bool | None):
        raise RequestError("stream must be true or false", param="stream", code="invalid_type")
    for name, limit in (("n", settings.max_n), ("prompt_logprobs", settings.max_prompt_logprobs)):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise RequestError(f"{name} must be a whole number", param=name, code="invalid_type")
        if value > limit or value < 0:
            raise RequestError(
                f"{name} is {value}: this gateway takes 0 to {limit}", param=name, code="over_limit"
            )


def _cleaned(body: JSON, settings: Settings, default_model: DefaultModel) -> tuple[JSON, bool]:
    """The body as the engine may see it, with a model; and whether it differs."""
    options, is_cut = _template_options(body, settings)
    kept = {key: value for key, value in body.items() if not _is_stripped(key)} | options
    changed = is_cut or len(kept) != len(body)
    return (kept, changed) if kept.get("model") else ({**kept, "model": default_model()}, True)


def _template_options(body: JSON, settings: Settings) -> tuple[JSON, bool]:
    """Options of the engine's chat template that may be set; whether one was left out."""
    options = body.get(TEMPLATE_OPTIONS)
    if options is None:
        return {}, TEMPLATE_OPTIONS in body
    if not isinstance(options, dict):
        raise RequestError(
            f"{TEMPLATE_OPTIONS} must be an object", param=TEMPLATE_OPTIONS, code="invalid_type"
        )
    kept = {
        name: value
        for name, value in options.items()
        if name in settings.chat_template_kwargs and isinstance(value, bool | int | float | str)
    }
    return ({TEMPLATE_OPTIONS: kept} if kept else {}), len(kept) != len(options)


def _is_stripped(key: str) -> bool:
    return key in STRIPPED or key.startswith(STRIPPED_PREFIXES)
