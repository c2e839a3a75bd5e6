"""Read an OpenAI chat body: split it into images, context and question, and rebuild it with one part
replaced.

Images may stand in any user message; the probed text is that of the last user message. Its context is told
from its question by, in this order: explicit `modint.context` / `modint.question`; several text parts (the
last one is the question); the last question sentence or option block of one string (`split`). A rebuild
copies only what it changes: other fields, other messages, their order and the client's own object stay as
they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from modint_guard import images
from modint_guard.config import MAX_DEADLINE_S, ImageLimits
from modint_guard.errors import ImageError, RequestError
from modint_guard.split import split_text
from modint_guard.types import JSON, Chat, ImagePart, ModintOptions, Option, Relevant, Span

MODE_HEADER = "x-modint-mode"
RELEVANT_HEADER = "x-modint-relevant"
OPTION_KEYS = tuple(f.name for f in fields(ModintOptions) if f.name != "relevant_source")

_AUDIO_PARTS = frozenset({"input_audio", "audio_url", "audio"})
_VIDEO_PARTS = frozenset({"video_url", "video", "input_video"})


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text of the probed message: `part` is its index in the content list, None for a plain string."""

    part: int | None
    text: str


def parse(
    body: JSON,
    options: ModintOptions | None = None,
    limits: ImageLimits | None = None,
    *,
    decode: bool = True,
) -> Chat:
    """Split one chat body. `decode=False` checks images by their headers only. Raises RequestError,
    ImageError.
    """
    options = options or ModintOptions()
    messages = _messages(body)
    found = _images(messages, limits or ImageLimits(), decode=decode)
    turn = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    texts = _texts(messages[turn]) if turn >= 0 else ()
    context, question, choices = _split(texts, options)
    return Chat(
        body={key: value for key, value in body.items() if key != "modint"},
        turn=turn,
        images=found,
        context=_read(texts, context) or None,
        question=_read(texts, question),
        options=choices,
        context_spans=context,
        question_spans=question,
    )


def unsupported(body: JSON) -> str | None:
    """The SKIPPED reason of the first content part that cannot be probed: "audio", "video" or
    "unsupported_part".
    """
    for message in _messages(body):
        for part in _parts(message):
            kind = part.get("type")
            if kind in _AUDIO_PARTS or kind in _VIDEO_PARTS:
                return "audio" if kind in _AUDIO_PARTS else "video"
            if kind not in ("text", "image_url", "refusal"):
                return "unsupported_part"
    return None


def without_context(chat: Chat) -> JSON:
    """The body with its context taken out, reading as if it had never been there."""
    return rebuild(chat, context="")


def with_context(chat: Chat, context: str) -> JSON:
    """The body with another context; where it had none, the new one stands on a line before the question."""
    return rebuild(chat, context=context)


def with_image(chat: Chat, data_url: str) -> JSON:
    """The body with every image replaced by this one."""
    return rebuild(chat, images=[data_url] * len(chat.images))


def rebuild(chat: Chat, *, context: str | None = None, images: Sequence[str] | None = None) -> JSON:
    """A new body with the context ("" takes it out) and/or the images (one URL for each) replaced."""
    messages = list(chat.body["messages"])
    if images is not None:
        _replace_images(messages, chat.images, images)
    if context is not None and chat.turn >= 0 and (context or chat.context_spans):
        messages[chat.turn] = _with_text(messages[chat.turn], chat, context)
    return {**chat.body, "messages": messages}


# -- reading the body ------------------------------------------------------------------------------


def _messages(body: JSON) -> list[JSON]:
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages:
        raise RequestError("`messages` must be a list with at least one message.", param="messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"`{where}` must be an object with a string `role`.", param=where)
        _check_content(message.get("content"), f"{where}.content")
    return cast("list[JSON]", messages)


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError(f"`{where}` must be a string or a list of parts.", param=where)
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise RequestError(f"`{at}` must be an object with a string `type`.", param=at)
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise RequestError(f"`{at}.text` must be a string.", param=f"{at}.text")


def _parts(message: JSON) -> list[JSON]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _texts(message: JSON) -> tuple[TextPart, ...]:
    content = message.get("content")
    if isinstance(content, str):
        return (TextPart(None, content),) if content.strip() else ()
    return tuple(
        TextPart(index, part["text"])
        for index, part in enumerate(_parts(message))
        if part["type"] == "text" and part["text"].strip()
    )


def _images(messages: list[JSON], limits: ImageLimits, *, decode: bool) -> tuple[ImagePart, ...]:
    places = [
        (m, p, part)
        for m, message in enumerate(messages)
        for p, part in enumerate(_parts(message))
        if part["type"] == "image_url"
    ]
    if len(places) > limits.max_images:
        raise ImageError(
            f"The request holds {len(places)} images, the limit is {limits.max_images}: send fewer.",
            code="too_many_images",
        )
    return tuple(_image(m, p, part, limits, decode=decode) for m, p, part in places)


def _image(message: int, index: int, part: JSON, limits: ImageLimits, *, decode: bool) -> ImagePart:
    where = f"messages[{message}].content[{index}].image_url"
    held = part.get("image_url")
    url = held.get("url") if isinstance(held, dict) else held
    if not isinstance(url, str):
        raise ImageError(f"`{where}.url` must be a string that holds a data: URL.", param=where)
    try:
        size = images.check_data_url(url, limits, whole=decode)
    except ImageError as exc:
        raise ImageError(exc.message, param=where, code=exc.code, status=exc.status) from exc
    return ImagePart(message, index, url, size)


# -- telling context from question -----------------------------------------------------------------


def _split(
    texts: tuple[TextPart, ...], options: ModintOptions
) -> tuple[tuple[Span, ...], tuple[Span, ...], tuple[Option, ...]]:
    """Context spans, question spans, options."""
    if options.context is not None or options.question is not None:
        return _explicit(texts, options)
    if not texts:
        return (), (), ()
    if len(texts) > 1:
        return tuple(_whole(text) for text in texts[:-1]), (_whole(texts[-1]),), _options(texts[-1].text)
    part, split = texts[0].part, split_text(texts[0].text)
    return (
        tuple(Span(part, a, b) for a, b in split.context),
        tuple(Span(part, a, b) for a, b in split.question),
        split.options,
    )


def _explicit(
    texts: tuple[TextPart, ...], options: ModintOptions
) -> tuple[tuple[Span, ...], tuple[Span, ...], tuple[Option, ...]]:
    context = _find(texts, options.context, "context")
    question = _find(texts, options.question, "question")
    if options.context is None:
        context = _rest(texts, question)
    elif options.question is None:
        question = _rest(texts, context)
    if not question:
        raise RequestError(
            "`modint.context` covers the whole message: leave the question out of it.", param="modint.context"
        )
    return context, question, _options(_read(texts, question))


def _find(texts: tuple[TextPart, ...], wanted: str | None, key: str) -> tuple[Span, ...]:
    """Where the wanted text stands; the last place counts. An empty text stands nowhere."""
    wanted = (wanted or "").strip()
    if not wanted:
        return ()
    for text in reversed(texts):
        if (start := text.text.rfind(wanted)) >= 0:
            return (Span(text.part, start, start + len(wanted)),)
    raise RequestError(
        f"`modint.{key}` does not stand in the last user message: repeat its words as they are written.",
        param=f"modint.{key}",
    )


def _rest(texts: tuple[TextPart, ...], taken: tuple[Span, ...]) -> tuple[Span, ...]:
    """All text but the taken spans."""
    rest: list[Span] = []
    for text in texts:
        at = 0
        own = [(s.start, s.end) for s in taken if s.part == text.part]
        for start, end in [*own, (len(text.text), len(text.text))]:
            if piece := text.text[at:start].strip():
                first = at + text.text[at:start].index(piece)
                rest.append(Span(text.part, first, first + len(piece)))
            at = end
    return tuple(rest)


def _whole(text: TextPart) -> Span:
    return Span(text.part, 0, len(text.text))


def _options(text: str) -> tuple[Option, ...]:
    return split_text(text).options


def _read(texts: tuple[TextPart, ...], spans: tuple[Span, ...]) -> str:
    by_part = {text.part: text.text for text in texts}
    return "\n".join(by_part[s.part][s.start : s.end].strip() for s in spans)


# -- rebuilding ------------------------------------------------------------------------------------


def _replace_images(messages: list[JSON], parts: tuple[ImagePart, ...], urls: Sequence[str]) -> None:
    for image, url in zip(parts, urls, strict=True):
        message = messages[image.message]
        content = list(message["content"])
        part = content[image.part]
        held = part["image_url"]
        new = {**part, "image_url": {**held, "url": url} if isinstance(held, dict) else url}
        new.pop("uuid", None)  # the client's cache key names the old image
        content[image.part] = new
        messages[image.message] = {**message, "content": content}


def _with_text(message: JSON, chat: Chat, context: str) -> JSON:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _edited(content, chat, None, context)}
    parts: list[JSON] = []
    for index, part in enumerate(content or []):
        if part["type"] != "text" or not _touched(chat, index):
            parts.append(part)
        elif text := _edited(part["text"], chat, index, context):
            parts.append({**part, "text": text})
    if context and not chat.context_spans and not chat.question_spans:
        parts.append({"type": "text", "text": context})
    return {**message, "content": parts}


def _touched(chat: Chat, part: int | None) -> bool:
    spans = chat.context_spans or chat.question_spans[:1]
    return any(span.part == part for span in spans)


def _edited(text: str, chat: Chat, part: int | None, context: str) -> str:
    """One text with the new context in the place of the old: in its first span, the others are taken out."""
    if not chat.context_spans:
        if not context or not chat.question_spans:
            return context or text
        start = chat.question_spans[0].start
        return f"{text[:start]}{context}\n{text[start:]}"
    first = chat.context_spans[0]
    for span in reversed([s for s in chat.context_spans if s.part == part]):
        if context and span == first:
            text = text[: span.start] + context + text[span.end :]
        else:
            text = _cut(text, span.start, span.end)
    return text if context else text.strip()


def _cut(text: str, start: int, end: int) -> str:
    """Take [start, end) out with the blanks that only served to set it apart."""
    before, after = text[:start], text[end:]
    if not before.strip():
        return after.lstrip()
    if not after.strip():
        return before.rstrip()
    left, right = before[len(before.rstrip()) :], after[: len(after) - len(after.lstrip())]
    between = right if right.count("\n") > left.count("\n") else left or right
    return before.rstrip() + between + after.lstrip()


# -- the `modint` field and headers ----------------------------------------------------------------


def parse_options(field: Any = None, headers: Mapping[str, str] | None = None) -> ModintOptions:
    """The body's `modint` field merged with the request's headers (the field wins). Raises RequestError."""
    field = {} if field is None else field
    if not isinstance(field, dict):
        raise RequestError("`modint` must be an object.", param="modint")
    for key in field:
        if key not in OPTION_KEYS:
            raise _unknown_key(key)
    values = {key: _CHECKS[key](f"modint.{key}", value) for key, value in field.items() if value is not None}
    source = "request" if "relevant" in values else None
    for header, key in ((MODE_HEADER, "mode"), (RELEVANT_HEADER, "relevant")):
        value = _header(headers, header)
        if value is not None and key not in values:
            values[key] = _CHECKS[key](header, value.strip().lower())
            source = "header" if key == "relevant" else source
    if values.get("relevant") is None:
        source = None
    return ModintOptions(**values, relevant_source=cast('Literal["request", "header"] | None', source))


def _header(headers: Mapping[str, str] | None, name: str) -> str | None:
    if not headers:
        return None
    return headers.get(name) or next((v for k, v in headers.items() if k.lower() == name), None)


def _unknown_key(key: Any) -> RequestError:
    shown = str(key)[:40]
    near = difflib.get_close_matches(shown, OPTION_KEYS, n=1, cutoff=0.0)[0]
    return RequestError(
        f"`modint.{shown}` is no key of `modint`: did you mean `{near}`? Known: {', '.join(OPTION_KEYS)}.",
        param=f"modint.{shown}",
        code="unknown_parameter",
    )


def _one_of(*known: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in known:
            raise RequestError(
                f"`{name}` must be one of {', '.join(known)}.", param=name, code="invalid_value"
            )
        return str(value)

    return check


def _relevant(name: str, value: Any) -> Relevant | None:
    word = _one_of("image", "text", "both", "auto")(name, value)
    return None if word == "auto" else Relevant(word)


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"`{name}` must be a string.", param=name, code="invalid_value")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RequestError(f"`{name}` must be a list of probe names.", param=name, code="invalid_value")
    return tuple(dict.fromkeys(value))


def _deadline(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_DEADLINE_S:
        raise RequestError(
            f"`{name}` must be a number of seconds above 0 and at most {MAX_DEADLINE_S:g}.",
            param=name,
            code="invalid_value",
        )
    return float(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "mode": _one_of("on", "off"),
    "relevant": _relevant,
    "context": _string,
    "question": _string,
    "probes": _names,
    "deadline_s": _deadline,
    "action": _one_of("annotate"),
}
