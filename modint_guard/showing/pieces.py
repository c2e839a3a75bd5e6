"""An answer in pieces, each with what gave it: the finest spans of its `modint` object, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modint_guard.errors import EndpointError
from modint_guard.schema import ModintObject, SpanObject, verdict

LEAST = 1.0  # nats: a smaller influence is no colour
CALLS = "/tool_calls/"


@dataclass(frozen=True, slots=True)
class ShownPiece:
    """A piece of an answer. gave: the modality that gave it; None if neither did. span: what is known of it;
    None between spans.
    """

    text: str
    gave: Literal["text", "image"] | None = None
    span: SpanObject | None = None

    @property
    def is_flagged(self) -> bool:
        """Whether an interfering modality turned it."""
        return self.span is not None and self.span.cause is not None


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One answer: its text in pieces, or the arguments of its tool calls, and its verdict if it has one."""

    texts: tuple[tuple[ShownPiece, ...], ...]
    modint: ModintObject | None

    def given_by(self, modality: Literal["text", "image"]) -> list[str]:
        """The pieces that a modality gave."""
        return [piece.text for text in self.texts for piece in text if piece.gave == modality]

    @property
    def flagged(self) -> list[str]:
        """The pieces that an interfering modality turned."""
        return [piece.text for text in self.texts for piece in text if piece.is_flagged]


def shown(completion: Any, choice: int = 0) -> ShownAnswer:
    """An answer of a completion, in pieces.

    completion: an object of the `openai` package or a dict. choice: which of several answers. Raises
    EndpointError if it has no such answer, or a `modint` object of another schema.
    """
    document = completion.model_dump() if hasattr(completion, "model_dump") else completion
    try:
        found = document["choices"][choice]
        message = found["message"]
        calls = [call["function"]["arguments"] or "" for call in message.get("tool_calls") or ()]
        content = message.get("content") or ""
    except (AttributeError, IndexError, KeyError, TypeError) as exc:
        raise EndpointError(f"The completion has no answer number {choice}.") from exc
    modint = verdict(found) or verdict(document)
    spans = _finest(modint.spans) if modint and _is_about(modint, choice) else []
    of_content = [span for span in spans if not (span.path or "").startswith(CALLS)] if content else []
    texts = [pieces_of(content, of_content)] if content or not calls else []
    for number, arguments in enumerate(calls):
        path = f"{CALLS}{number}/"
        texts.append(pieces_of(arguments, [span for span in spans if (span.path or "").startswith(path)]))
    return ShownAnswer(tuple(texts), modint)


def _is_about(modint: ModintObject, choice: int) -> bool:
    """Whether an object is about this answer, and its spans about the text that was served."""
    mitigation = modint.mitigation
    is_replaced = mitigation is not None and mitigation.answer is not None and not mitigation.correction
    return modint.choice == choice and not is_replaced


def pieces_of(text: str, spans: Sequence[SpanObject]) -> tuple[ShownPiece, ...]:
    """A text in pieces, in order; together they are the text. Spans that do not lie in it are left out, and
    so is one that overlaps another before it.
    """
    pieces: list[ShownPiece] = []
    at = 0
    for span in sorted(spans, key=lambda span: span.start):
        if not at <= span.start < span.end <= len(text):
            continue
        if span.start > at:
            pieces.append(ShownPiece(text[at : span.start]))
        pieces.append(ShownPiece(text[span.start : span.end], gave(span), span))
        at = span.end
    rest = text[at:]
    return (*pieces, *([ShownPiece(rest)] if rest else []))


def gave(span: SpanObject) -> Literal["text", "image"] | None:
    """The modality whose influence on a span is the larger one, if it is at least LEAST."""
    of_text, of_image = span.influence.text or 0.0, span.influence.image or 0.0
    if max(of_text, of_image) < LEAST:
        return None
    return "text" if of_text > of_image else "image"


def _finest(spans: Sequence[SpanObject]) -> list[SpanObject]:
    """The words, and the leaves of which no word is listed."""
    words = [span for span in spans if span.kind == "word"]
    leaves = [span for span in spans if span.kind == "leaf"]
    return words + [
        leaf
        for leaf in leaves
        if not any(word.path == leaf.path and leaf.start <= word.start < leaf.end for word in words)
    ]
