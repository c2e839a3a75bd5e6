"""Variants of labelled requests, to fit the splitter on: without the context, with it at another place, and
as people type in a hurry. Deterministic: what is drawn depends on the request's name alone.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from bench.relevance.requests import LabelledRequest, labelled_letters, texts_of
from modint_guard.types import JSON

Place = tuple[int, int | None]  # message and part
Piece = tuple[str, bool]  # of a text, and whether it is context
Part = JSON | list[Piece]  # a picture, or a text in pieces
Message = tuple[str, list[Part]]  # role and parts
_MOVES = 2  # variants of each request with the context elsewhere
_PLACES = ("before", "before", "before", "before", "after", "after", "part", "system", "turn")
_JOINTS = (" ", " ", "\n", "\n\n")
_SENTENCE_END = re.compile(r"[.!?。？！؟।](?=\s|\Z)")


@dataclass(frozen=True, slots=True)
class Marked:
    """A chat body and, for each character of each text, whether it is context."""

    body: JSON
    marks: Mapping[Place, list[bool]]


def marked(request: LabelledRequest) -> Marked:
    """A request with the marks that its labels say; white space within a context belongs to it."""
    letters = labelled_letters(request)
    marks: dict[Place, list[bool]] = {}
    for message, part, text in texts_of(request.body):
        flags = [(message, part, index) in letters for index in range(len(text))]
        for gap in re.finditer(r"\s+", text):
            start, end = gap.span()
            is_within = bool(start) and end < len(text) and flags[start - 1] and flags[end]
            flags[start:end] = [is_within] * (end - start)
        marks[message, part] = flags
    return Marked(request.body, marks)


def variants(request: LabelledRequest) -> Iterator[Marked]:
    """The variants of one request."""
    draw = random.Random(request.id)
    messages = _pieces(marked(request))
    if request.placement not in ("inside", "none"):
        bare = [(role, _without_context(parts)) for role, parts in messages]
        if _texts(bare[-1][1]):
            yield _written(bare)
        for _ in range(_MOVES):
            if moved := _moved(request, messages, draw):
                made = _written(moved)
                yield _in_a_hurry(made, draw) if draw.random() < 0.3 else made
    if draw.random() < 0.5:
        yield _in_a_hurry(_written(messages), draw)


def _pieces(request: Marked) -> list[Message]:
    messages: list[Message] = []
    for number, message in enumerate(request.body["messages"]):
        content = message["content"]
        is_string = isinstance(content, str)
        parts: list[Part] = []
        for place, part in enumerate([{"type": "text", "text": content}] if is_string else content):
            if part["type"] == "text":
                marks = request.marks.get((number, None if is_string else place), [False] * len(part["text"]))
                parts.append(_runs(part["text"], marks))
            else:
                parts.append(part)
        messages.append((message["role"], parts))
    return messages


def _runs(text: str, marks: list[bool]) -> list[Piece]:
    cuts = [0, *(index for index in range(1, len(text)) if marks[index] != marks[index - 1]), len(text)]
    return [(text[a:b], marks[a]) for a, b in pairwise(cuts) if a < b]


def _written(messages: list[Message]) -> Marked:
    """The body that these messages make; texts and messages without letters are left out."""
    written: list[JSON] = []
    marks: dict[Place, list[bool]] = {}
    for role, parts in messages:
        kept = [part for part in parts if isinstance(part, dict) or "".join(t for t, _ in part).strip()]
        if not kept:
            continue
        is_string = role != "user" or (len(kept) == 1 and isinstance(kept[0], list))
        content: list[JSON] = []
        for place, part in enumerate(kept):
            if isinstance(part, dict):
                content.append(part)
                continue
            content.append({"type": "text", "text": "".join(text for text, _ in part)})
            flags = [flag for text, flag in part for _ in text]
            marks[len(written), None if is_string else place] = flags
        written.append({"role": role, "content": content[0]["text"] if is_string else content})
    return Marked({"model": "m", "messages": written}, marks)


def _without_context(parts: list[Part]) -> list[Part]:
    return [part if isinstance(part, dict) else [(_bare(part), False)] for part in parts]


def _bare(part: list[Piece]) -> str:
    return re.sub(r"[ \t]{2,}", " ", "".join(text for text, is_context in part if not is_context)).strip()


def _texts(parts: list[Part]) -> list[str]:
    return [part[0][0] for part in parts if isinstance(part, list) and part[0][0]]


def _moved(request: LabelledRequest, messages: list[Message], draw: random.Random) -> list[Message] | None:
    """The request with its first context at a place that is drawn; None if that cannot be."""
    last = _without_context(messages[-1][1])
    asked = "\n".join(_texts(last))
    if request.question not in asked:
        return None
    told, joint = (request.contexts[0], True), draw.choice(_JOINTS)
    prompts = [parts for role, parts in messages[:1] if role == "system"]
    roles: list[Part] = [part for parts in prompts for part in _without_context(parts)]
    place = draw.choice(_PLACES)
    earlier: list[Message] = []
    body: list[Part] = [[(asked, False)]]
    if place == "before":
        body = [[told, (joint + asked, False)]]
    elif place == "after":
        body = [[(asked + joint, False), told]]
    elif place == "part":
        body = [[told], *body] if draw.random() < 0.8 else [*body, [told]]
    elif place == "turn":
        earlier = [("user", [[told]]), ("assistant", [[("OK", False)]])]
    elif not (prompt := "\n".join(_texts(roles))):
        return None
    else:
        behind = draw.random() < 0.7
        roles = [[(prompt + joint, False), told] if behind else [told, (joint + prompt, False)]]
    pictures: list[Part] = [part for part in last if isinstance(part, dict)]
    content = pictures + body if draw.random() < 0.7 else body + pictures
    system: list[Message] = [("system", roles)] if roles else []
    return [*system, *earlier, ("user", content)]


def _in_a_hurry(request: Marked, draw: random.Random) -> Marked:
    """The users' texts without some or all full stops and question marks, often in lower case."""
    messages = _pieces(request)
    for role, parts in messages:
        if role != "user":
            continue
        for part in parts:
            if isinstance(part, dict):
                continue
            text = "".join(piece for piece, _ in part)
            every, small = draw.random() < 0.6, draw.random() < 0.8
            dropped = {m.start() for m in _SENTENCE_END.finditer(text) if every or draw.random() < 0.5}
            at, pieces = 0, []
            for piece, flag in part:
                kept = "".join(c for index, c in enumerate(piece, at) if index not in dropped)
                pieces.append((kept.lower() if small and len(kept.lower()) == len(kept) else kept, flag))
                at += len(piece)
            if "".join(piece for piece, _ in pieces).strip():
                part[:] = pieces
    return _written(messages)
