"""Read an OpenAI chat body: split it into images, context and question, and rebuild it with one part
replaced.

Images may stand in any user message. The question is that of the last user message. Its context is told from
it by, in this order: explicit `modint.context` / `modint.question`; several text parts (the last one that
asks is the question); the last question sentence or option block of one string (`split`). Besides, what
earlier user messages state and what a system prompt says of the picture or under a heading such as "Context:"
(`facts`) is context. A rebuild copies only what it changes: other fields, other messages, their order and the
client's own object stay as they are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from modint_guard.chat import images
from modint_guard.chat.body import check_image_count, check_types, messages_of, url_of
from modint_guard.chat.images import ImageLimits
from modint_guard.chat.question import asks, is_latin, says_how, split_text, states
from modint_guard.chat.system_prompt import facts_in
from modint_guard.errors import ImageError, RequestError
from modint_guard.types import (
    ACTIONS,
    JSON,
    MAX_DEADLINE_S,
    Chat,
    ImagePart,
    ModintOptions,
    Option,
    Piece,
    Relevant,
    Span,
)

MODE_HEADER = "x-modint-mode"
RELEVANT_HEADER = "x-modint-relevant"
ACTION_HEADER = "x-modint-action"
_BY_HEADER = ((MODE_HEADER, "mode"), (RELEVANT_HEADER, "relevant"), (ACTION_HEADER, "action"))
OPTION_KEYS = tuple(f.name for f in fields(ModintOptions) if f.name != "relevant_source")

_AUDIO_PARTS = frozenset({"input_audio", "audio_url", "audio"})
_VIDEO_PARTS = frozenset({"video_url", "video", "input_video"})
_PROMPTS = ("system", "developer")
_IMAGE_LABEL = re.compile(
    r"[#*(<\[]*(?:(?:image|picture|photo|figure|fig)\.?\s*)?(?:\d{1,3}|[a-z])?[>*)\].:]*", re.I
)
_MAX_IMAGE_LABEL = 24  # characters


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text of a message: `part` is its index in the content list, None for a plain string."""

    message: int
    part: int | None
    text: str

    def spans(self, pieces: Sequence[Piece]) -> tuple[Span, ...]:
        return tuple(Span(self.message, self.part, start, end) for start, end in pieces)

    @property
    def whole(self) -> tuple[Span, ...]:
        return self.spans([(0, len(self.text))])


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
    messages = messages_of(body)
    check_types(messages)
    found = _images(messages, limits or ImageLimits(), decode=decode)
    turn = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    texts = _texts(messages, turn)
    if options.context is not None or options.question is not None:
        context, question, choices = _explicit(texts, _others(messages, turn), options)
    else:
        context, question, choices = _split(texts)
        context = (*_stated_elsewhere(messages, turn), *context)
    everything = (*_others(messages, turn), *texts)
    return Chat(
        body={key: value for key, value in body.items() if key != "modint"},
        turn=turn,
        images=found,
        context=_read(everything, context) or None,
        question=_read(everything, question),
        options=choices,
        context_spans=context,
        question_spans=question,
    )


def unsupported(body: JSON) -> str | None:
    """The SKIPPED reason of the first content part that cannot be probed: "audio", "video" or
    "unsupported_part".
    """
    for message in messages_of(body):
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


def with_question_after(chat: Chat, question: str) -> JSON:
    """The body with one more question on a line after its own: to ask about the request."""
    messages = list(chat.body["messages"])
    if not chat.question_spans:
        return {**chat.body, "messages": [*messages, {"role": "user", "content": question}]}
    last, message = chat.question_spans[-1], messages[chat.turn]
    messages[chat.turn] = _with_texts(
        message,
        lambda part, text: f"{text[: last.end]}\n{question}{text[last.end :]}" if part == last.part else text,
    )
    return {**chat.body, "messages": messages}


def with_texts_at(chat: Chat, changes: Sequence[tuple[Span, str]]) -> JSON:
    """The body with other texts in these places, which must not overlap."""
    messages = list(chat.body["messages"])
    for span, new in sorted(changes, key=lambda change: -change[0].start):
        messages[span.message] = _with_texts(
            messages[span.message],
            lambda part, text, at=span, put=new: (  # type: ignore[misc]
                f"{text[: at.start]}{put}{text[at.end :]}" if part == at.part else text
            ),
        )
    return {**chat.body, "messages": messages}


def rebuild(chat: Chat, *, context: str | None = None, images: Sequence[str] | None = None) -> JSON:
    """A new body with the context ("" takes it out) and/or the images (one URL for each) replaced."""
    messages = list(chat.body["messages"])
    if images is not None:
        _replace_images(messages, chat.images, images)
    if context is not None and chat.turn >= 0 and (context or chat.context_spans):
        for index in {span.message for span in chat.context_spans} or {chat.turn}:
            messages[index] = _with_text(messages[index], index, chat, context)
    return {**chat.body, "messages": messages}


# -- reading the body ------------------------------------------------------------------------------


def _parts(message: JSON) -> list[JSON]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _texts(messages: Sequence[JSON], index: int) -> tuple[TextPart, ...]:
    """The texts of one message that are more than blanks; none for the index -1."""
    if index < 0:
        return ()
    content = messages[index].get("content")
    if isinstance(content, str):
        return (TextPart(index, None, content),) if content.strip() else ()
    return tuple(
        TextPart(index, place, part["text"])
        for place, part in enumerate(_parts(messages[index]))
        if part["type"] == "text" and part["text"].strip()
    )


def _others(messages: Sequence[JSON], turn: int) -> tuple[TextPart, ...]:
    """The texts of system prompts and earlier user messages."""
    said = [i for i in range(max(turn, 0)) if messages[i]["role"] in (*_PROMPTS, "user")]
    return tuple(text for index in said for text in _texts(messages, index))


def _images(messages: list[JSON], limits: ImageLimits, *, decode: bool) -> tuple[ImagePart, ...]:
    places = [
        (m, p, part)
        for m, message in enumerate(messages)
        for p, part in enumerate(_parts(message))
        if part["type"] == "image_url"
    ]
    check_image_count(len(places), limits.max_images)
    return tuple(_image(m, p, part, limits, decode=decode) for m, p, part in places)


def _image(message: int, index: int, part: JSON, limits: ImageLimits, *, decode: bool) -> ImagePart:
    where = f"messages[{message}].content[{index}].image_url"
    url = url_of(part.get("image_url"))
    if not url:
        raise ImageError(f"`{where}.url` must be a string that holds a data: URL.", param=where)
    try:
        size = images.check_data_url(url, limits, whole=decode)
    except ImageError as exc:
        raise ImageError(exc.message, param=where, code=exc.code, status=exc.status) from exc
    return ImagePart(message, index, url, size)


# -- telling context from question -----------------------------------------------------------------


def _split(texts: tuple[TextPart, ...]) -> tuple[tuple[Span, ...], tuple[Span, ...], tuple[Option, ...]]:
    """Context spans, question spans, options of the last user message."""
    if not texts:
        return (), (), ()
    asking = _asking_parts(texts)
    context: list[Span] = []
    question: list[Span] = []
    for place, text in enumerate(texts):
        if place == asking[0] and (len(texts) == 1 or place < len(texts) - 1):
            split = split_text(text.text)
            context.extend(text.spans(split.context))
            question.extend(text.spans(split.question))
        elif place in asking or _is_image_label(text.text) or says_how(text.text):
            question.extend(text.whole)
        else:
            context.extend(text.whole)
    return tuple(context), tuple(question), _options(texts[asking[0]])


def _asking_parts(texts: tuple[TextPart, ...]) -> tuple[int, ...]:
    """Which text parts ask: the last, unless it clearly does not (it says how to answer, or makes a plain
    statement) and an earlier one does. Where that cannot be told, both do: a question must not be lost.
    """
    last = len(texts) - 1
    said = texts[last].text
    only_how = says_how(said)
    earlier = next((place for place in reversed(range(last)) if asks(texts[place].text)), None)
    if earlier is None or (asks(said) and not only_how):
        return (last,)
    if only_how or states(said):
        return (earlier,)
    return (last,) if is_latin(said) else (earlier, last)


def _is_image_label(text: str) -> bool:
    """Whether a part only names the picture beside it: "Image 1:", "(B)"."""
    return len(text.strip()) <= _MAX_IMAGE_LABEL and bool(_IMAGE_LABEL.fullmatch(text.strip()))


def _stated_elsewhere(messages: Sequence[JSON], turn: int) -> tuple[Span, ...]:
    """What earlier user messages state, and what system prompts state of the picture or under a heading."""
    found: list[Span] = []
    for text in _others(messages, turn):
        if messages[text.message]["role"] in _PROMPTS:
            found.extend(text.spans(facts_in(text.text)))
        elif not _is_image_label(text.text):
            found.extend(text.whole if _only_states(text.text) else text.spans(split_text(text.text).context))
    return tuple(found)


def _only_states(text: str) -> bool:
    """Whether a message of an earlier turn asks nothing and is more than a greeting."""
    return states(text) and not says_how(text)


def _explicit(
    texts: tuple[TextPart, ...], others: tuple[TextPart, ...], options: ModintOptions
) -> tuple[tuple[Span, ...], tuple[Span, ...], tuple[Option, ...]]:
    """The context may stand in any message, the question in the last user message only."""
    context = _find((*others, *texts), options.context, "context")
    question = _find(texts, options.question, "question")
    if options.context is None:
        context = _rest(texts, question)
    elif options.question is None:
        question = _rest(texts, context)
    if not question:
        raise RequestError(
            "`modint.context` covers the whole message: leave the question out of it.", param="modint.context"
        )
    return context, question, _options_of(texts, question)


def _find(texts: tuple[TextPart, ...], wanted: str | None, key: str) -> tuple[Span, ...]:
    """Where the wanted text stands; the last place counts. An empty text stands nowhere."""
    wanted = (wanted or "").strip()
    if not wanted:
        return ()
    for text in reversed(texts):
        if (start := text.text.rfind(wanted)) >= 0:
            return text.spans([(start, start + len(wanted))])
    where = "the last user message" if key == "question" else "any message of the user or the system"
    raise RequestError(
        f"`modint.{key}` does not stand in {where}: repeat its words as they are written.",
        param=f"modint.{key}",
    )


def _rest(texts: tuple[TextPart, ...], taken: tuple[Span, ...]) -> tuple[Span, ...]:
    """All text of a message but the taken spans."""
    rest: list[Span] = []
    for text in texts:
        at = 0
        own = [(s.start, s.end) for s in taken if (s.message, s.part) == (text.message, text.part)]
        for start, end in [*own, (len(text.text), len(text.text))]:
            if piece := text.text[at:start].strip():
                first = at + text.text[at:start].index(piece)
                rest.extend(text.spans([(first, first + len(piece))]))
            at = end
    return tuple(rest)


def _options(text: TextPart) -> tuple[Option, ...]:
    """The options of one text, with their places where they form a block."""
    split = split_text(text.text)
    spans = text.spans(split.option_texts) or (None,) * len(split.options)
    return tuple(
        Option(option.label, option.text, span) for option, span in zip(split.options, spans, strict=True)
    )


def _options_of(texts: tuple[TextPart, ...], question: tuple[Span, ...]) -> tuple[Option, ...]:
    """The options among explicit question spans: those of the text they stand in, where they lie within."""
    for text in texts:
        own = [span for span in question if span.part == text.part]
        found = _options(text) if own else ()
        if found and all(o.span is None or any(_within(o.span, span) for span in own) for o in found):
            return found
    return split_text(_read(texts, question)).options


def _within(inner: Span, outer: Span) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def _read(texts: tuple[TextPart, ...], spans: tuple[Span, ...]) -> str:
    by_place = {(text.message, text.part): text.text for text in texts}
    return "\n".join(by_place[s.message, s.part][s.start : s.end].strip() for s in spans)


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


def _with_text(message: JSON, index: int, chat: Chat, context: str) -> JSON:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _edited(content, index, chat, None, context)}
    parts: list[JSON] = []
    for place, part in enumerate(content or []):
        if part["type"] != "text" or not _touched(chat, index, place):
            parts.append(part)
        elif text := _edited(part["text"], index, chat, place, context):
            parts.append({**part, "text": text})
    if context and not chat.context_spans and not chat.question_spans:
        parts.append({"type": "text", "text": context})
    return {**message, "content": parts or ""}


def _with_texts(message: JSON, edit: Callable[[int | None, str], str]) -> JSON:
    """A message with its text, or each of its text parts, edited; `edit` gets a part's index and its text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": edit(None, content)}
    parts = [
        {**part, "text": edit(place, part["text"])} if part["type"] == "text" else part
        for place, part in enumerate(content or [])
    ]
    return {**message, "content": parts}


def _touched(chat: Chat, message: int, part: int | None) -> bool:
    spans = chat.context_spans or chat.question_spans[:1]
    return any((span.message, span.part) == (message, part) for span in spans)


def _edited(text: str, message: int, chat: Chat, part: int | None, context: str) -> str:
    """One text with the new context in the place of the old: in its first span, the others are taken out."""
    if not chat.context_spans:
        if not context or not chat.question_spans:
            return context or text
        start = chat.question_spans[0].start
        return f"{text[:start]}{context}\n{text[start:]}"
    first = _place_of_new(chat)
    for span in reversed([s for s in chat.context_spans if (s.message, s.part) == (message, part)]):
        if context and span == first:
            text = text[: span.start] + context + text[span.end :]
        else:
            text = _cut(text, span.start, span.end)
    return text if context else text.strip()


def _place_of_new(chat: Chat) -> Span:
    """Where a new context goes: the first span beside the question, else the first of all."""
    beside = (span for span in chat.context_spans if span.message == chat.turn)
    return next(beside, chat.context_spans[0])


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
    for header, key in _BY_HEADER:
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
    "action": _one_of(*ACTIONS),
}
