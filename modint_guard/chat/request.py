"""Reads an OpenAI chat body: splits it into images, context and question.

Images may be in any user message. The question is in the last user message that has text or, if several
follow each other, in the one of them that most likely asks: a picture and its question may come in two
messages. Context is what `modint.context` or `modint.question` make it, if the request names them; else what
the classifier of `splitting` takes for context in the texts of users and system prompts. All else in the
question's message is the question: options (`option_block`) and instructions too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modint_guard.chat import images
from modint_guard.chat.body import check_image_count, check_types, messages_of, url_of
from modint_guard.chat.images import ImageLimits
from modint_guard.chat.linear import Reader, shipped_reader
from modint_guard.chat.option_block import inline_options
from modint_guard.chat.sentences import options_in
from modint_guard.chat.splitting import CONTEXT, QUESTION, ReadUnit, Said, read_units
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

_PROMPTS = ("system", "developer")
_IMAGE_LABEL = re.compile(
    r"[#*(<\[]*(?:(?:image|picture|photo|figure|fig)\.?\s*)?(?:\d{1,3}|[a-z])?[>*)\].:]*", re.I
)
_MAX_IMAGE_LABEL = 24  # characters
_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text of a message; `part` is the index of its content part, None for a plain string."""

    message: int
    part: int | None
    text: str

    def spans(self, pieces: Sequence[Piece]) -> tuple[Span, ...]:
        """These pieces of the text as places in the body."""
        return tuple(Span(self.message, self.part, start, end) for start, end in pieces)

    @property
    def whole(self) -> tuple[Span, ...]:
        """All of the text as one span."""
        return self.spans([(0, len(self.text))])


def parse(
    body: JSON,
    options: ModintOptions | None = None,
    limits: ImageLimits | None = None,
    *,
    decode: bool = True,
    reader: Reader | None = None,
) -> Chat:
    """Split one chat body into images, context and question.

    decode: decode every image to its end; otherwise only their headers are checked. reader: None for the
    shipped one. Raises RequestError for a body of another shape and for a context or question in `options`
    that the messages do not hold; ImageError for an image that cannot be used.
    """
    options = options or ModintOptions()
    messages = messages_of(body)
    check_types(messages)
    image_parts = _images(messages, limits or ImageLimits(), decode=decode)
    everything = _texts(messages)
    if options.context is not None or options.question is not None:
        turn = _named_turn(messages, options.question)
        texts = tuple(text for text in everything if text.message == turn)
        others = tuple(text for text in everything if text.message != turn)
        context, question, choices = _explicit(texts, others, options)
    else:
        turn, context, question = _split(messages, everything, reader or shipped_reader())
        choices = _options_of([text for text in everything if text.message == turn], question)
    return Chat(
        body={key: value for key, value in body.items() if key != "modint"},
        turn=turn,
        images=image_parts,
        context=_read(everything, context) or None,
        question=_read(everything, question),
        options=choices,
        context_spans=context,
        question_spans=question,
    )


def said_in(body: JSON) -> tuple[list[Said], list[tuple[int, int | None]]]:
    """The texts that are divided into context and question, as the classifier reads them, and where each
    stands: its message and part. Raises RequestError for a body of another shape.
    """
    messages = messages_of(body)
    texts = _texts(messages)
    return _said(messages, texts), [(text.message, text.part) for text in texts]


# -- reading the body ------------------------------------------------------------------------------


def _parts(message: JSON) -> list[JSON]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _texts(messages: Sequence[JSON]) -> tuple[TextPart, ...]:
    """What users and system prompts say, if it is more than white space, in order."""
    speakers = (*_PROMPTS, "user")
    said = [place for place, message in enumerate(messages) if message["role"] in speakers]
    return tuple(text for place in said for text in _texts_of(messages[place], place))


def _texts_of(message: JSON, index: int) -> list[TextPart]:
    content = message.get("content")
    if isinstance(content, str):
        return [TextPart(index, None, content)] if content.strip() else []
    return [
        TextPart(index, place, part["text"])
        for place, part in enumerate(_parts(message))
        if part["type"] == "text" and part["text"].strip()
    ]


def _last_run(messages: Sequence[JSON]) -> range:
    """The user messages that follow each other up to the last one with text, or up to the last one; empty
    without one.
    """
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    last = next((p for p in reversed(users) if _texts_of(messages[p], p)), max(users, default=-1))
    first = last
    while first > 0 and messages[first - 1]["role"] == "user":
        first -= 1
    return range(first, last + 1) if users else range(0)


def _named_turn(messages: Sequence[JSON], question: str | None) -> int:
    """The last message of the last run that holds the question that the request names; else its last one, or
    -1 without one.
    """
    run = _last_run(messages)
    wanted = (question or "").strip()
    holding = (p for p in reversed(run) if any(wanted in text.text for text in _texts_of(messages[p], p)))
    return next(holding, run[-1] if run else -1)


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


# -- separating context and question ---------------------------------------------------------------


def _split(
    messages: Sequence[JSON], texts: Sequence[TextPart], reader: Reader
) -> tuple[int, tuple[Span, ...], tuple[Span, ...]]:
    """The message that asks (-1 without a user), the context spans, and the question spans in that
    message.
    """
    if not _last_run(messages):
        return -1, (), ()
    units = read_units(_said(messages, texts), reader)
    turn = _asking_turn(_last_run(messages), texts, units)
    is_context = _kept_question(texts, units, turn)
    context: list[Span] = []
    question: list[Span] = []
    for number, text in enumerate(texts):
        marked = [(u.start, u.end, c) for u, c in zip(units, is_context, strict=True) if u.text == number]
        context.extend(text.spans(_merged(marked, wanted=True)))
        if text.message == turn:
            question.extend(text.spans(_merged(marked, wanted=False)) if marked else text.whole)
    return turn, tuple(context), tuple(question)


def _asking_turn(run: range, texts: Sequence[TextPart], units: Sequence[ReadUnit]) -> int:
    """The message of the run that most likely asks: the last one, or that of the likeliest question."""
    asking = [unit for unit in units if texts[unit.text].message in run]
    if not asking:
        return run[-1]
    return texts[max(asking, key=lambda unit: unit.probabilities[QUESTION]).text].message


def _said(messages: Sequence[JSON], texts: Sequence[TextPart]) -> list[Said]:
    """These texts as the classifier reads them."""
    run = _last_run(messages)
    return [_one_said(messages[text.message], texts, text, run) for text in texts]


def _one_said(message: JSON, texts: Sequence[TextPart], text: TextPart, run: range) -> Said:
    role: Literal["system", "earlier"] = "system" if message["role"] in _PROMPTS else "earlier"
    together = [other.part for other in texts if other.message == text.message]
    pictures = [place for place, part in enumerate(_parts(message)) if part["type"] == "image_url"]
    return Said(
        text.text,
        "last" if text.message in run else role,
        together.index(text.part),
        len(together),
        "none" if not pictures or text.part is None else "before" if pictures[0] < text.part else "after",
    )


def _kept_question(texts: Sequence[TextPart], units: Sequence[ReadUnit], turn: int) -> list[bool]:
    """Which units are context. Options and labels of pictures never are, and something is left to answer in
    the last user message.
    """
    blocks = {number: options_in(text.text) for number, text in enumerate(texts) if text.message == turn}
    is_context = [
        unit.is_context
        and not ((block := blocks.get(unit.text)) and block.start < unit.end and unit.start < block.end)
        and not _is_image_label(texts[unit.text].text)
        for unit in units
    ]
    here = [number for number, unit in enumerate(units) if texts[unit.text].message == turn]
    read = {units[number].text for number in here}
    if read == set(blocks) and here and all(is_context[number] for number in here):
        is_context[min(here, key=lambda number: units[number].probabilities[CONTEXT])] = False
    return is_context


def _merged(units: Sequence[tuple[int, int, bool]], *, wanted: bool) -> list[Piece]:
    """The units that are context (or, if not `wanted`, are not), neighbouring ones as one piece."""
    pieces: list[Piece] = []
    follows = False
    for start, end, is_context in units:
        if is_context is wanted:
            pieces[-1:] = [(pieces[-1][0], end)] if follows else [*pieces[-1:], (start, end)]
        follows = is_context is wanted
    return pieces


def _is_image_label(text: str) -> bool:
    """Whether a part only labels the picture next to it: "Image 1:", "(B)"."""
    return len(text.strip()) <= _MAX_IMAGE_LABEL and bool(_IMAGE_LABEL.fullmatch(text.strip()))


def _explicit(
    texts: tuple[TextPart, ...], others: tuple[TextPart, ...], options: ModintOptions
) -> tuple[tuple[Span, ...], tuple[Span, ...], tuple[Option, ...]]:
    """Context, question and options as the request names them. The context may be in any message, the
    question in the last user message only.
    """
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
    """The last place at which the texts hold the wanted one; none for an empty one. Raises RequestError if
    they do not hold it.
    """
    wanted = (wanted or "").strip()
    if not wanted:
        return ()
    for text in reversed(texts):
        if (start := text.text.rfind(wanted)) >= 0:
            return text.spans([(start, start + len(wanted))])
    where = "the last user message" if key == "question" else "any message of the user or the system"
    raise RequestError(
        f"`modint.{key}` is not in {where}: repeat its words exactly as they are written there.",
        param=f"modint.{key}",
    )


def _rest(texts: tuple[TextPart, ...], taken: tuple[Span, ...]) -> tuple[Span, ...]:
    """All of the texts except for the taken spans."""
    rest: list[Span] = []
    for text in texts:
        at = 0
        taken_here = [(s.start, s.end) for s in taken if (s.message, s.part) == (text.message, text.part)]
        for start, end in [*taken_here, (len(text.text), len(text.text))]:
            if piece := text.text[at:start].strip():
                first = at + text.text[at:start].index(piece)
                rest.extend(text.spans([(first, first + len(piece))]))
            at = end
    return tuple(rest)


def _options_of(texts: Sequence[TextPart], question: tuple[Span, ...]) -> tuple[Option, ...]:
    """The options within question spans: those of the last block, with their places, or those that a sentence
    lists.
    """
    for text in reversed(texts):
        block = options_in(text.text)
        spans = text.spans(block.texts) if block else ()
        asked = [span for span in question if (span.message, span.part) == (text.message, text.part)]
        if block and all(any(_within(option, span) for span in asked) for option in spans):
            return tuple(Option(o.label, o.text, span) for o, span in zip(block.options, spans, strict=True))
    return inline_options(_read(texts, question))


def _within(inner: Span, outer: Span) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def _read(texts: Sequence[TextPart], spans: tuple[Span, ...]) -> str:
    by_place = {(text.message, text.part): text.text for text in texts}
    pieces = [by_place[s.message, s.part][s.start : s.end].strip() for s in spans]
    return "".join(
        piece if i == 0 or not _WORD.search(piece) else f"\n{piece}" for i, piece in enumerate(pieces)
    )
