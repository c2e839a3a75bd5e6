"""Reads an OpenAI chat body: splits it into images, context and question.

Images may be in any user message. The question is in the last user message that has text or, if several
follow each other, in the one of them that asks: a picture and its question may come in two messages. What
separates it from its context is `modint.context` or `modint.question` if the request names them, else the
learnt splitter (`learnt_split`). Among its features is what rules say: of the text parts of the message, the
last one that asks is the question; in a single string, the last sentence that asks or the option block
(`question`). What the other user messages state is context too, and so is what a system prompt says about the
picture or below a heading such as "Context:" (`system_prompt`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modint_guard.chat import images
from modint_guard.chat.body import check_image_count, check_types, messages_of, url_of
from modint_guard.chat.images import ImageLimits
from modint_guard.chat.learnt_split import PlacedText, RuledRequest, divided
from modint_guard.chat.parts import in_one_form
from modint_guard.chat.question import (
    TextSplit,
    asks,
    is_latin,
    is_left_open,
    orders,
    says_how,
    split_text,
    states,
)
from modint_guard.chat.rebuild import by_place
from modint_guard.chat.split_features import EARLIER, LAST, NOT_LAST, ONLY, SYSTEM
from modint_guard.chat.splitter import Splitter, shipped_splitter
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

_PROMPTS = ("system", "developer")
_IMAGE_LABEL = re.compile(
    r"[#*(<\[]*(?:(?:image|picture|photo|figure|fig)\.?\s*)?(?:\d{1,3}|[a-z])?[>*)\].:]*", re.I
)
_MAX_IMAGE_LABEL = 24  # characters
_WORD = re.compile(r"\w")
_MAX_READ = 400_000  # characters of a request that are split into question and context, the newest first


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text of a message; `part` is the index of its content part, None for a plain string."""

    message: int
    part: int | None
    text: str
    is_read: bool = True  # False: beyond what is split of a request; such a text is context as a whole

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
    splitter: Splitter | None = None,
) -> Chat:
    """Split one chat body into images, context and question.

    decode: decode every image to its end; otherwise only their headers are checked. splitter: what tells
    context from question, by default the one in the package. Raises RequestError for a
    body of another shape and for a context or question in `options` that the messages do not hold; ImageError
    for an image that cannot be used.
    """
    options = options or ModintOptions()
    messages = in_one_form(messages_of(body))
    check_types(messages)
    image_parts = _images(messages, limits or ImageLimits(), decode=decode)
    turn = _turn(messages, options.question)
    texts, others = _bounded(_texts(messages, turn), _others(messages, turn))
    if options.context is not None or options.question is not None:
        context, question, choices = _explicit(texts, others, options)
    else:
        ruled = _ruled(messages, texts, others, len(image_parts))
        choices = ruled.options
        context, question = divided(ruled, splitter or shipped_splitter())
    everything = (*others, *texts)
    return Chat(
        body={key: value for key, value in body.items() if key != "modint"} | {"messages": messages},
        turn=turn,
        images=image_parts,
        context=_read(everything, context) or None,
        question=_read(everything, question),
        options=choices,
        context_spans=context,
        question_spans=question,
    )


def by_rules(body: JSON) -> RuledRequest:
    """A chat body as the rules alone divide it, without `modint` options. Raises RequestError for a body of
    another shape, and ImageError for a picture whose header cannot be used.
    """
    messages = in_one_form(messages_of(body))
    turn = _turn(messages, None)
    texts, others = _bounded(_texts(messages, turn), _others(messages, turn))
    return _ruled(messages, texts, others, len(_images(messages, ImageLimits(), decode=False)))


# -- reading the body ------------------------------------------------------------------------------


def _parts(message: JSON) -> list[JSON]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _texts(messages: Sequence[JSON], index: int) -> tuple[TextPart, ...]:
    """The texts of one message that are more than white space; none for the index -1."""
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
    """The texts of system prompts and user messages except for the message `turn`; none without one."""
    others = [i for i, m in enumerate(messages) if i != turn >= 0 and m["role"] in (*_PROMPTS, "user")]
    return tuple(text for index in others for text in _texts(messages, index))


def _turn(messages: Sequence[JSON], question: str | None) -> int:
    """The index of the user message that holds the question; -1 if there is no user message.

    question: its words, if the request names them.
    """
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    last = next((index for index in reversed(users) if _texts(messages, index)), max(users, default=-1))
    first = last
    while first > 0 and messages[first - 1]["role"] == "user":
        first -= 1
    if first == last:
        return last
    texts, _ = _bounded(
        tuple(text for index in range(first, last + 1) for text in _texts(messages, index)), ()
    )
    if question:
        holding = (text.message for text in reversed(texts) if question.strip() in text.text)
        return next(holding, last)
    return texts[_asking_parts(texts)[0]].message if texts else last


def _bounded(
    texts: tuple[TextPart, ...], others: tuple[TextPart, ...]
) -> tuple[tuple[TextPart, ...], tuple[TextPart, ...]]:
    """The same texts, marked as not read where too many characters come after them."""
    left = _MAX_READ
    bounded: list[TextPart] = []
    for text in reversed((*others, *texts)):
        bounded.append(text if left > 0 else replace(text, is_read=False))
        left -= len(text.text)
    bounded.reverse()
    return tuple(bounded[len(others) :]), tuple(bounded[: len(others)])


def _images(messages: list[JSON], limits: ImageLimits, *, decode: bool) -> tuple[ImagePart, ...]:
    places = [
        (m, p, part)
        for m, message in enumerate(messages)
        for p, part in enumerate(_parts(message))
        if part["type"] == "image_url"
    ]
    check_image_count(len(places), limits.max_images)
    by_header = tuple(_image(m, p, part, limits, decode=False) for m, p, part in places)
    images.check_total((image.size for image in by_header), limits)
    return tuple(_image(m, p, part, limits, decode=True) for m, p, part in places) if decode else by_header


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


def _in_order(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    return tuple(sorted(spans, key=lambda span: (span.message, span.part or 0, span.start)))


def _ruled(
    messages: Sequence[JSON], texts: tuple[TextPart, ...], others: tuple[TextPart, ...], pictures: int
) -> RuledRequest:
    """The request as the rules divide it. texts: those of the question's message."""
    context, question, options, block = _split(texts)
    roles = [SYSTEM if messages[text.message]["role"] in _PROMPTS else EARLIER for text in others]
    roles += [NOT_LAST if len(texts) > 1 else ONLY for _ in texts]
    if len(texts) > 1:
        roles[-1] = LAST
    placed = [
        PlacedText(text.message, text.part, text.text, role, text.is_read)
        for text, role in zip((*others, *texts), roles, strict=True)
    ]
    return RuledRequest(
        tuple(sorted(placed, key=lambda text: (text.message, text.part or 0))),
        _in_order((*_stated_elsewhere(messages, others), *context)),
        question,
        options,
        block,
        pictures,
        sum(message["role"] == "assistant" for message in messages),
    )


def _split(
    texts: tuple[TextPart, ...],
) -> tuple[tuple[Span, ...], tuple[Span, ...], tuple[Option, ...], Span | None]:
    """What the rules say of the question's message: context, question, options, and their block's place."""
    if not texts:
        return (), (), (), None
    asking = _asking_parts(texts)
    context: list[Span] = []
    question: list[Span] = []
    asked = texts[asking[0]]
    split = split_text(asked.text)
    for place, text in enumerate(texts):
        if place == asking[0] and (len(texts) == 1 or place < len(texts) - 1):
            context.extend(text.spans(split.context))
            question.extend(text.spans(split.question))
        elif place in asking or (text.is_read and (_is_image_label(text.text) or orders(text.text))):
            question.extend(text.whole)
        else:
            context.extend(text.whole)
    block = asked.spans([split.block])[0] if split.block else None
    return tuple(context), tuple(question), _options(asked, split), block


def _asking_parts(texts: tuple[TextPart, ...]) -> tuple[int, ...]:
    """Which text parts ask: the last one, unless it clearly does not (it says how to answer, or makes a plain
    statement) and an earlier one does. If that is uncertain, both are taken, so that no question is lost.
    """
    last = len(texts) - 1
    last_text = texts[last].text
    only_how = says_how(last_text)
    readable = (place for place in reversed(range(last)) if texts[place].is_read)
    earlier = next((place for place in readable if asks(texts[place].text)), None)
    if earlier is not None and not only_how and orders(last_text):
        return (earlier, last)
    if earlier is None or (asks(last_text) and not only_how):
        return (last,)
    if only_how or states(last_text) or _is_fragment(last_text):
        return (earlier,)
    return (last,) if is_latin(last_text) else (earlier, last)


def _is_fragment(text: str) -> bool:
    """Whether a part is no more than a name or a caption without a full stop: "a koala on a tree"."""
    return is_latin(text) and not asks(text) and not is_left_open(text)


def _is_image_label(text: str) -> bool:
    """Whether a part only labels the picture next to it: "Image 1:", "(B)"."""
    return len(text.strip()) <= _MAX_IMAGE_LABEL and bool(_IMAGE_LABEL.fullmatch(text.strip()))


def _stated_elsewhere(messages: Sequence[JSON], others: tuple[TextPart, ...]) -> tuple[Span, ...]:
    """What the other user messages state, and what system prompts state (`facts_in`)."""
    spans: list[Span] = []
    for text in others:
        is_prompt = messages[text.message]["role"] in _PROMPTS
        if not text.is_read:
            spans.extend(() if is_prompt else text.whole)
        elif is_prompt:
            spans.extend(text.spans(facts_in(text.text)))
        elif not _is_image_label(text.text):
            spans.extend(text.whole if _only_states(text.text) else text.spans(split_text(text.text).context))
    return tuple(spans)


def _only_states(text: str) -> bool:
    """Whether an earlier message makes statements only and does not merely say how to answer."""
    return states(text) and not says_how(text)


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
        if (start := _last_place(text.text, wanted)) >= 0:
            return text.spans([(start, start + len(wanted))])
    where = "the last user message" if key == "question" else "any message of the user or the system"
    raise RequestError(
        f"`modint.{key}` is not in {where}: repeat its words exactly as they are written there.",
        param=f"modint.{key}",
    )


def _last_place(text: str, wanted: str) -> int:
    """As `text.rfind(wanted)`, which takes quadratic time; `find` does not, so both are read backwards."""
    from_end = text[::-1].find(wanted[::-1])
    return -1 if from_end < 0 else len(text) - from_end - len(wanted)


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


def _options(text: TextPart, split: TextSplit) -> tuple[Option, ...]:
    """The options of one text, with their places if they form a block."""
    spans = text.spans(split.option_texts) or (None,) * len(split.options)
    return tuple(
        Option(option.label, option.text, span) for option, span in zip(split.options, spans, strict=True)
    )


def _options_of(texts: tuple[TextPart, ...], question: tuple[Span, ...]) -> tuple[Option, ...]:
    """The options within question spans that the request named."""
    by_part = by_place(question)
    for text in texts:
        spans = by_part.get((text.message, text.part), [])
        options = _options(text, split_text(text.text)) if spans else ()
        if options and all(o.span is None or any(_within(o.span, span) for span in spans) for o in options):
            return options
    return split_text(_read(texts, question)).options


def _within(inner: Span, outer: Span) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def _read(texts: tuple[TextPart, ...], spans: tuple[Span, ...]) -> str:
    whole = {(text.message, text.part): text.text for text in texts}
    pieces = [whole[s.message, s.part][s.start : s.end].strip() for s in spans]
    return "".join(
        piece if i == 0 or not _WORD.search(piece) else f"\n{piece}" for i, piece in enumerate(pieces)
    )
