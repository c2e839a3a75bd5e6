"""Writes a chat body with its context, its images or some of its texts replaced.

Only what changes is copied. All other fields and messages and their order stay as they are, and so does the
client's own object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modint_guard.types import JSON, Chat, ImagePart, Span

_CLOSING_MARKS = tuple("?!.,;:？！。，；：")
ByPlace = dict[tuple[int, int | None], list[Span]]  # the index of a message and of its part -> spans


def with_question_after(chat: Chat, question: str) -> JSON:
    """The body with one more question, on a line below its own; used to ask the model about the request."""
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
    """The body with other texts at these places. The places must not overlap."""
    messages = list(chat.body["messages"])
    for span, new in sorted(changes, key=lambda change: -change[0].start):
        messages[span.message] = _with_texts(
            messages[span.message],
            lambda part, text, at=span, put=new: (  # type: ignore[misc]
                f"{text[: at.start]}{put}{text[at.end :]}" if part == at.part else text
            ),
        )
    return {**chat.body, "messages": messages}


def rebuild(chat: Chat, *, context: str | None = None, images: Sequence[str | None] | None = None) -> JSON:
    """A new body with the context, the images or both replaced.

    context: the new context; "" leaves it out, so that the text reads as if there had been none. If the
    request had no context, the new one is put on a line above the question. images: the new image URLs, one
    for each image of the request, in order, or None to leave it out; raises ValueError for another number.
    """
    messages = list(chat.body["messages"])
    if images is not None:
        _replace_images(messages, chat.images, images)
    if context is not None and chat.turn >= 0 and (context or chat.context_spans):
        places = by_place(chat.context_spans)
        for index in {span.message for span in chat.context_spans} or {chat.turn}:
            messages[index] = _with_text(messages[index], index, chat, places, context)
    if images is not None and None in images:
        for index in {image.message for image in chat.images}:
            kept = [part for part in messages[index]["content"] if part is not _LEFT_OUT]
            messages[index] = {**messages[index], "content": kept or ""}
    return {**chat.body, "messages": messages}


_LEFT_OUT: JSON = {"type": "left_out"}  # stands for an image until the texts are in place, which go by number


def _replace_images(messages: list[JSON], parts: tuple[ImagePart, ...], urls: Sequence[str | None]) -> None:
    for image, url in zip(parts, urls, strict=True):
        message = messages[image.message]
        content = list(message["content"])
        if url is None:
            content[image.part] = _LEFT_OUT
            messages[image.message] = {**message, "content": content}
            continue
        part = content[image.part]
        old = part["image_url"]
        new = {**part, "image_url": {**old, "url": url} if isinstance(old, dict) else url}
        new.pop("uuid", None)  # the client's cache key names the old image
        content[image.part] = new
        messages[image.message] = {**message, "content": content}


def _with_text(message: JSON, index: int, chat: Chat, places: ByPlace, context: str) -> JSON:
    """A message with the new context in its texts. places: the spans of the old context."""
    changed = places or by_place(chat.question_spans[:1])
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _edited(content, chat, places.get((index, None), []), context)}
    parts: list[JSON] = []
    for place, part in enumerate(content or []):
        if part["type"] != "text" or (index, place) not in changed:
            parts.append(part)
        elif text := _edited(part["text"], chat, places.get((index, place), []), context):
            parts.append({**part, "text": text})
    if context and not chat.context_spans and not chat.question_spans:
        parts.append({"type": "text", "text": context})
    return {**message, "content": parts or ""}


def _with_texts(message: JSON, edit: Callable[[int | None, str], str]) -> JSON:
    """A message with its text, or each of its text parts, edited.

    edit: makes the new text from the part's index (None for a plain string) and its text.
    """
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": edit(None, content)}
    parts = [
        {**part, "text": edit(place, part["text"])} if part["type"] == "text" else part
        for place, part in enumerate(content or [])
    ]
    return {**message, "content": parts}


def by_place(spans: Sequence[Span]) -> ByPlace:
    """The spans of each text, in order, by the text's place in the body."""
    places: ByPlace = {}
    for span in spans:
        places.setdefault((span.message, span.part), []).append(span)
    return places


def _edited(text: str, chat: Chat, spans: Sequence[Span], context: str) -> str:
    """One text with the new context in place of the old one: at the first span, the other spans removed.

    spans: those of the context in this text.
    """
    if not chat.context_spans:
        if not context or not chat.question_spans:
            return context or text
        start = chat.question_spans[0].start
        return f"{text[:start]}{context}\n{text[start:]}"
    first = _span_for_context(chat) if context else None
    for span in reversed(spans):
        if context and span == first:
            text = text[: span.start] + context + text[span.end :]
        else:
            text = _cut(text, span.start, span.end)
    return text if context else text.strip()


def _span_for_context(chat: Chat) -> Span:
    """Where a new context goes: the first span in the question's message, else the first of all."""
    in_turn = (span for span in chat.context_spans if span.message == chat.turn)
    return next(in_turn, chat.context_spans[0])


def _cut(text: str, start: int, end: int) -> str:
    """The text without [start, end) and without the white space that only set it apart."""
    before, after = text[:start], text[end:]
    if not before.strip():
        return after.lstrip()
    if not after.strip():
        return before.rstrip()
    if after.lstrip().startswith(_CLOSING_MARKS):
        return before.rstrip() + after.lstrip()
    left, right = before[len(before.rstrip()) :], after[: len(after) - len(after.lstrip())]
    between = right if right.count("\n") > left.count("\n") else left or right
    return before.rstrip() + between + after.lstrip()
