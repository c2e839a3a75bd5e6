"""What gave which part of an answer: the influences of its tokens, gathered into words, claims and leaves.

Every token that counts (`evidence`) belongs to one word: to the one in which it has a part, or else, as a
comma does, to the one before it. The influence of a word is the sum of those of its tokens, that of a claim
or a leaf the sum of those of its words, so at each level the sums add up to the whole.

A part is turned if one of its tokens is. In an answer that is flagged as `text` or `image`, a token is turned
if it alone would have flagged the answer: since the whole answer is flagged by the largest of its tokens, of
harmless answers no more than the share alpha has any such token (Westfall and Young's single step). A token
of punctuation turns its word only if nothing else is turned. Any other cause is one of the answer as a whole;
it is that of a part only if the answer has no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

from modint_guard.chat.json_leaves import leaves_in
from modint_guard.chat.token_places import holding
from modint_guard.chat.words import claims_in, words_in
from modint_guard.judging.evidence import Evidence, evidence_of, tokens_by_word
from modint_guard.report import AnswerSpan, SpanKind
from modint_guard.types import TEACHER_FORCED, Cause, Influence, Piece, Reply, Score, Statistic

MAX_SPANS = 100  # of one answer
_BEGINNING = 1000  # characters that an answer's first word is looked for in


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer before it is reported.

    tokens: the indices of those that belong to it, among the tokens that count. shift: from its place in what
    was written to that in what the client gets.
    """

    kind: SpanKind
    piece: Piece
    tokens: tuple[int, ...]
    path: str | None = None
    shift: int = 0


def spans_of(
    answer: Reply, score: Score, turned: Iterable[int], cause: Cause | None
) -> tuple[AnswerSpan, ...]:
    """The parts of an answer, flagged ones first, each of the two groups in the order of the text. Of more
    than `MAX_SPANS`, those are left out that have the least influence.

    turned: the tokens that were, by their indices among those that were compared. cause: of a flagged answer.
    """
    parts = parts_of(answer) if score.method == TEACHER_FORCED else _first_word(answer)
    influences = score.tokens
    if (
        not influences and len(parts) == 1 and cause is not None
    ):  # flagged by one view, which stopped the rest
        influences = (Influence(None, None, None),) * (1 + max(parts[0].tokens, default=0))
    if not parts or not influences:
        return ()
    indices = set(turned)
    marked = [part for part in parts if indices & set(part.tokens)]
    if len(parts) == 1 and cause is not None:
        marked = parts
    spans = [_span(answer, part, influences, cause if part in marked else None) for part in parts]
    kept = sorted(spans, key=lambda span: (span.cause is None, -_strength(span)))[:MAX_SPANS]
    return tuple(sorted(kept, key=lambda span: (span.cause is None, span.start, -span.end)))


def turned_tokens(
    answer: Reply, statistics: Mapping[int, Statistic], flags: Callable[[Statistic], bool]
) -> tuple[int, ...]:
    """The tokens of a flagged answer that alone would have flagged it; if none would, the one that was turned
    most. By their indices among those that were compared.

    statistics: as from `token_statistics`. flags: whether an answer with this statistic is flagged.
    """
    if not statistics:
        return ()
    most = max(statistics, key=lambda t: statistics[t].value)
    found = [t for t, statistic in statistics.items() if statistic.value > 0.0 and flags(statistic)]
    words = _tokens_of_words(answer)
    return tuple(t for t in found if t in words) or tuple(found) or (most,)


def flagged_words(spans: Sequence[AnswerSpan]) -> tuple[str, ...]:
    """What was turned of an answer that has other words too, in the order of the text, words that follow each
    other as one; empty if all of it was, or nothing.
    """
    words = [span for span in spans if span.kind == "word"]
    paths = {span.path for span in words}
    finest = [*words, *(span for span in spans if span.kind == "leaf" and span.path not in paths)]
    flagged = sorted((span for span in finest if span.cause), key=lambda span: span.start)
    if len(flagged) == len(finest):
        return ()
    texts: list[str] = []
    for before, span in zip([None, *flagged], flagged, strict=False):
        follows = before is not None and before.path == span.path and span.start - before.end == 1
        texts[-1:] = [f"{texts[-1]} {span.text}"] if follows else [*texts[-1:], span.text]
    return tuple(texts)


def parts_of(answer: Reply) -> list[Part]:
    """The words and claims of an answer that was scored as a whole, or the leaves of a JSON document with the
    words of those that have several; empty if it is not known where its tokens stand.
    """
    evidence = evidence_of(answer)
    if evidence.leaves is None:
        return _of_text(answer.text, evidence)
    parts: list[Part] = []
    for leaf in dict.fromkeys(evidence.leaves):
        tokens = tuple(i for i, each in enumerate(evidence.leaves) if each == leaf)
        words = _words(answer.text, (leaf.start, leaf.end), tokens, evidence.places, leaf.path)
        shift = 0 if leaf.at is None else leaf.at - leaf.start
        inside = [Part("leaf", (leaf.start, leaf.end), tokens, leaf.path), *(words if len(words) > 1 else ())]
        parts += [replace(part, shift=shift) for part in inside]
    return parts


def _of_text(text: str, evidence: Evidence) -> list[Part]:
    everything = tuple(range(len(evidence.places)))
    words = _words(text, (0, len(text)), everything, evidence.places, None)
    pieces = claims_in(text)
    if len(pieces) < 2:
        return words
    claims: list[Part] = []
    for start, end in pieces:
        inside = [t for word in words if start <= word.piece[0] < end for t in word.tokens]
        claims += [Part("claim", (start, end), tuple(inside))] if inside else []
    return [*claims, *words]


def _words(
    text: str, within: Piece, tokens: Sequence[int], places: Sequence[Piece], path: str | None
) -> list[Part]:
    """The words of one piece of a text, with every one of these tokens in one of them."""
    return [
        Part("word", piece, tuple(inside), path)
        for piece, inside in tokens_by_word(text, within, tokens, places)
    ]


def _tokens_of_words(answer: Reply) -> set[int]:
    """The tokens that have a part in a word, by their indices among those that count."""
    parts = parts_of(answer)
    words = [part for part in parts if part.kind == "word"]
    paths = {part.path for part in words}
    leaves = [part for part in parts if part.kind == "leaf" and part.path not in paths]
    pieces = sorted(part.piece for part in (*words, *leaves))
    places = evidence_of(answer).places
    return {i for i, place in enumerate(places) if holding(pieces, place) is not None}


def _first_word(answer: Reply) -> list[Part]:
    """The only part that was compared of an answer that was not scored as a whole; a key of JSON is none."""
    words = words_in(answer.text[:_BEGINNING]) if leaves_in(answer.text) is None else []
    return [Part("word", words[0], (0,))] if words else []


def _span(answer: Reply, part: Part, influences: Sequence[Influence], cause: Cause | None) -> AnswerSpan:
    start, end = part.piece
    shift = answer.start + part.shift
    return AnswerSpan(
        kind=part.kind,
        start=start + shift,
        end=end + shift,
        text=answer.text[start:end],
        path=part.path,
        cause=cause,
        influence_text=_sum(influences[t].text for t in part.tokens),
        influence_image=_sum(influences[t].image for t in part.tokens),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else fsum(value for value in known if value is not None)


def _strength(span: AnswerSpan) -> float:
    return max(abs(span.influence_text or 0.0), abs(span.influence_image or 0.0))
