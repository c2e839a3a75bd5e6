"""The committed requests, labelled by what ought to decide the answer; `sets/README.md` says how they were
composed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from modint_guard.chat.images import png_data_url
from modint_guard.types import JSON, Chat, Span

SETS = Path(__file__).with_name("sets")
LEARNING = tuple("bcdefghijklm")  # one author each; cross-validation holds whole ones out
_FOLDS = 4
JUDGING = ("a",)  # chose nothing
LABELS = ("image", "text", "both", "neither")
PLACEMENTS = ("part", "before", "after", "inside", "turn", "system")
PICTURE = png_data_url(Image.new("RGB", (8, 8), (200, 120, 40)))
Letter = tuple[int, int | None, int]  # message, part, index of a character that is not blank


@dataclass(frozen=True, slots=True)
class LabelledRequest:
    """One request with its labels.

    body: a chat body with a small picture in place of each one. contexts, question: exact substrings of the
    messages. placement: one of PLACEMENTS, or "none".
    """

    id: str
    author: str
    domain: str
    language: str
    body: JSON
    relevant: str
    contexts: tuple[str, ...]
    question: str
    placement: str


def folds(authors: Iterable[str]) -> list[frozenset[str]]:
    """The authors, dealt into as many groups as cross-validation holds out in turn."""
    dealt = sorted(set(authors))
    return [frozenset(dealt[first::_FOLDS]) for first in range(min(_FOLDS, len(dealt)))]


def read_requests(names: Sequence[str] = LEARNING, folder: Path = SETS) -> list[LabelledRequest]:
    """The requests of these sets, in order. Raises ValueError, with file and line, for one that breaks the
    format of `sets/README.md` or asks the very same as one before it.
    """
    requests: list[LabelledRequest] = []
    seen: dict[tuple[str, ...], str] = {}
    for name in names:
        path = folder / f"{name}.jsonl"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            request = _request(json.loads(line), name)
            said = tuple(text for _, _, text in texts_of(request.body))
            fault = _fault(request)
            if other := seen.get((request.id,)) or seen.get(("", *said)):
                fault = f"{other} is the same"
            if fault:
                raise ValueError(f"{path.name}, line {number}: {request.id}: {fault}")
            seen[(request.id,)] = seen[("", *said)] = request.id
            requests.append(request)
    return requests


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _fault(request: LabelledRequest) -> str | None:
    """What a request's labels say that cannot be so; None if nothing."""
    texts = [text for _, _, text in texts_of(request.body)]
    if request.relevant not in LABELS:
        return f"relevant is none of {', '.join(LABELS)}: {request.relevant}"
    if request.placement not in (*PLACEMENTS, "none"):
        return f"no such placement: {request.placement}"
    if bool(request.contexts) != (request.placement != "none"):
        return f"contexts: {len(request.contexts)}, placement: {request.placement}"
    answers = [m["content"] for m in request.body["messages"] if m["role"] == "assistant"]
    if not any(request.question in text for text in texts):
        return f"the question is in no text: {request.question!r}"
    missing = [said for said in request.contexts if not any(said in text for text in (*texts, *answers))]
    return f"the context is in no text: {missing[0]!r}" if missing else None


def texts_of(body: JSON) -> Iterator[tuple[int, int | None, str]]:
    """The texts that users and system prompts say: message, part and text."""
    for number, message in enumerate(body["messages"]):
        if message["role"] == "assistant":
            continue
        if isinstance(message["content"], str):
            yield number, None, message["content"]
            continue
        for place, part in enumerate(message["content"]):
            if part["type"] == "text":
                yield number, place, part["text"]


def labelled_letters(request: LabelledRequest) -> set[Letter]:
    """The letters of the request's contexts."""
    return {letter for context in request.contexts for letter in _letters_of(request.body, context)}


def letters_in(body: JSON, spans: Sequence[Span]) -> set[Letter]:
    """The letters of these spans of a body."""
    texts = {(message, part): text for message, part, text in texts_of(body)}
    return {
        (span.message, span.part, index)
        for span in spans
        for index in range(span.start, span.end)
        if not texts[span.message, span.part][index].isspace()
    }


def _letters_of(body: JSON, wanted: str) -> set[Letter]:
    for message, part, text in texts_of(body):
        if (start := text.find(wanted)) >= 0:
            return letters_in(body, [Span(message, part, start, start + len(wanted))])
    return set()


def _request(row: Mapping[str, Any], author: str) -> LabelledRequest:
    messages = [{**message, "content": _with_picture(message["content"])} for message in row["messages"]]
    return LabelledRequest(
        id=row["id"],
        author=author,
        domain=row["domain"],
        language=row["language"],
        body={"model": "m", "messages": messages},
        relevant=row["relevant"],
        contexts=tuple(row["contexts"]),
        question=row["question"],
        placement=row["placement"],
    )


def _with_picture(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [
        {"type": "image_url", "image_url": {"url": PICTURE}} if part["type"] == "image_url" else part
        for part in content
    ]


def as_labelled(request: LabelledRequest, chat: Chat) -> Chat:
    """The same chat with the context and the question that the labels name."""
    spans = [_span_of(chat.body, context, first=True) for context in request.contexts]
    asked = _span_of(chat.body, request.question, first=False)
    return replace(
        chat,
        context="\n".join(request.contexts) or None,
        question=request.question,
        context_spans=tuple(sorted(filter(None, spans), key=lambda s: (s.message, s.part or 0, s.start))),
        question_spans=(asked,) if asked else (),
    )


def _span_of(body: JSON, wanted: str, *, first: bool) -> Span | None:
    texts = [*texts_of(body)]
    for message, part, text in texts if first else reversed(texts):
        if (start := text.find(wanted) if first else text.rfind(wanted)) >= 0:
            return Span(message, part, start, start + len(wanted))
    return None
