"""Read an OpenAI chat body: split it into images, context and question.

Images may stand in any user message. The question is that of the last user message. Its context is told from
it, in this order, by: explicit `modint.context` or `modint.question`; several text parts (the last one that
asks is the question); the last question sentence or option block of one string (`question`). What earlier
user messages state is context too, and what a system prompt says of the picture or under a heading such as
"Context:" (`system_prompt`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from modint_guard.chat import images
from modint_guard.chat.body import check_image_count, check_types, messages_of, url_of
from modint_guard.chat.images import ImageLimits
from modint_guard.chat.question import asks, is_latin, says_how, split_text, states
from modint_guard.chat.system_prompt import facts_in
from modint_guard.errors import ImageError, RequestError
from modint_guard.types import (
    JSON,
    Chat,
    ImagePart,
    ModintOptions,
    Option,
    Piece,
    Span,
)

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
