"""Divides a request into context and question by the learnt splitter, starting from what the rules say.

What the splitter does not read, because the request is too long, stays as the rules divide it. So does the
whole request if nothing that asks would be left, or if an option were no longer in the question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from modint_guard.chat.edges import with_whole_clauses
from modint_guard.chat.ngrams import MAX_CHARACTERS
from modint_guard.chat.split_features import (
    CONTEXT,
    EARLIER,
    QUESTION,
    SplitFeatures,
    Texts,
    split_features,
)
from modint_guard.chat.splitter import Splitter, context_tokens
from modint_guard.types import Option, Span

_WORD = re.compile(r"\w")
Spans = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class PlacedText:
    """A text of a request that is more than white space.

    role: where it stands, as in `split_features`. is_read: whether the rules read it.
    """

    message: int
    part: int | None
    text: str
    role: int
    is_read: bool = True


@dataclass(frozen=True, slots=True)
class RuledRequest:
    """A request as the rules divide it.

    texts: of system prompts and users, in order. context, question: what the rules say. options: those of the
    question; block: their place, if they have one. pictures, answers: how many the request has.
    """

    texts: tuple[PlacedText, ...]
    context: Spans
    question: Spans
    options: tuple[Option, ...]
    block: Span | None
    pictures: int
    answers: int


def divided(request: RuledRequest, splitter: Splitter) -> tuple[Spans, Spans]:
    """The context and the question of a request, in order."""
    read = read_texts(request)
    if not any(text.role > EARLIER for text in read):
        return request.context, request.question
    texts = joined(request, read)
    features = split_features(texts)
    flags = with_whole_clauses(context_tokens(features, splitter), features.tokens, texts.whole)
    context, question = _spans(read, features, flags)
    said = {(text.message, text.part): text.text for text in read}
    asked = "\n".join(said[span.message, span.part][span.start : span.end] for span in question)
    if not _WORD.search(asked) or any(option.text not in asked for option in request.options):
        return request.context, request.question
    unread = [span for span in request.context if (span.message, span.part) not in said]
    left = [span for span in request.question if (span.message, span.part) not in said]
    return _in_order([*unread, *context]), _in_order([*left, *question])


def read_texts(request: RuledRequest) -> tuple[PlacedText, ...]:
    """The texts that the splitter reads: of those that the rules read the newest, as many as fit."""
    read: list[PlacedText] = []
    room = MAX_CHARACTERS
    for text in reversed(request.texts):
        if text.is_read and len(text.text) < room:
            read.append(text)
            room -= len(text.text) + 1
    return tuple(reversed(read))


def joined(request: RuledRequest, read: Sequence[PlacedText]) -> Texts:
    """These texts of a request one after another, with what the rules say of each character."""
    whole = "\n".join(text.text for text in read)
    starts: dict[tuple[int, int | None], int] = {}
    at = 0
    for text in read:
        starts[text.message, text.part] = at
        at += len(text.text) + 1
    ruled, offered = np.zeros(len(whole), np.int8), np.zeros(len(whole), bool)
    for spans, said in ((request.question, QUESTION), (request.context, CONTEXT)):
        for here in _within(starts, spans):
            ruled[here] = said
    for here in _within(starts, [request.block] if request.block else []):
        offered[here] = True
    return Texts(
        whole,
        tuple(starts.values()),
        tuple(text.role for text in read),
        ruled,
        offered,
        request.pictures,
        len(request.options),
        request.answers,
    )


def _within(starts: dict[tuple[int, int | None], int], spans: Iterable[Span]) -> Iterable[slice]:
    for span in spans:
        if (start := starts.get((span.message, span.part))) is not None:
            yield slice(start + span.start, start + span.end)


def _spans(
    read: Sequence[PlacedText], features: SplitFeatures, flags: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> tuple[list[Span], list[Span]]:
    """The runs of context tokens; and of the others in the question's message."""
    tokens = features.tokens
    context: list[Span] = []
    question: list[Span] = []
    ends = np.flatnonzero((np.diff(tokens.text) != 0) | (np.diff(flags) != 0))
    firsts, lasts = np.append(0, ends + 1), np.append(ends, len(flags) - 1)
    begins = np.cumsum([0, *(len(text.text) + 1 for text in read)])
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        number = int(tokens.text[first])
        text, begin = read[number], int(begins[number])
        span = Span(
            text.message, text.part, int(tokens.starts[first]) - begin, int(tokens.ends[last]) - begin
        )
        if flags[first]:
            context.append(span)
        elif text.role > EARLIER:
            question.append(span)
    return context, question


def _in_order(spans: Sequence[Span]) -> Spans:
    return tuple(sorted(spans, key=lambda span: (span.message, span.part or 0, span.start)))
