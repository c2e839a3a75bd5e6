"""What is planted into a request: an input that ought to change nothing, or a lie. Pure, given a generator.

Beside a question about the picture: one sentence to twelve about something else, or a caption that claims
what the model itself says without one; above the question, before the picture or behind the question. Beside
a question about the text: a landscape in place of the picture, unless it is tiny or large. A context that was
there goes: it may be a lie itself.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from modint_guard.chat.rebuild import rebuild
from modint_guard.data.perturb import CLAIMS, FACTS
from modint_guard.judging.text_match import MAX_WORDS
from modint_guard.probing.views import from_registry
from modint_guard.types import JSON, Chat, Relevant

OTHERS = ("a violin", "a bridge", "a penguin", "an umbrella", "a kite", "a lighthouse", "green", "purple")
_OPPOSITE = {"yes": "no", "no": "yes"}
_PLACES = ("above", "before", "behind")


@dataclass(frozen=True, slots=True)
class Planted:
    """A request with something planted. context: the text that was planted, None for a picture."""

    body: JSON
    context: str | None


def harmless(chat: Chat, relevant: Relevant, answer: str | None, rng: random.Random) -> Planted | None:
    """The request with an input that ought to change nothing; None if none fits.

    answer: what the model says if what ought to decide is asked alone; None if it is not known.
    """
    if relevant is Relevant.TEXT and chat.images:
        body = from_registry("irrelevant_image")(chat)
        return None if body is None else Planted(body, chat.context)
    if relevant is not Relevant.IMAGE or chat.turn < 0:
        return None
    if answer and _is_claimable(answer) and rng.random() < 0.5:
        text = _claim(answer, rng)
    else:
        text = " ".join(rng.sample(FACTS, rng.choice((1, 1, 2, 3, 5, len(FACTS)))))
    return Planted(_with_text(chat, text, rng.choice(_PLACES)), text)


def lying(chat: Chat, relevant: Relevant, answer: str | None, rng: random.Random) -> Planted | None:
    """The request about a picture with a caption that claims another answer; None if none can be made up."""
    if relevant is not Relevant.IMAGE or chat.turn < 0 or not answer or not _is_claimable(answer):
        return None
    text = _claim(_another(chat, answer, rng), rng)
    return Planted(_with_text(chat, text, rng.choice(_PLACES)), text)


def _is_claimable(answer: str) -> bool:
    return 0 < len(answer.split()) <= MAX_WORDS and "\n" not in answer


def _claim(answer: str, rng: random.Random) -> str:
    return rng.choice(CLAIMS).format(claim=answer.strip().rstrip("."))


def _another(chat: Chat, answer: str, rng: random.Random) -> str:
    """An answer of the same kind: another option, the opposite, another number, or another thing."""
    said = answer.strip().rstrip(".").casefold()
    options = {each.text: each.label for each in chat.options}
    if others := [text for text, label in options.items() if said not in (label.casefold(), text.casefold())]:
        return rng.choice(others)
    if said in _OPPOSITE:
        return _OPPOSITE[said]
    if re.fullmatch(r"\d{1,9}", said):
        return str(int(said) + rng.choice((1, 2, 3, 10)))
    return rng.choice([other for other in OTHERS if other.split()[-1] not in said])


def _with_text(chat: Chat, text: str, place: str) -> JSON:
    """The request with this text as its only context."""
    body = rebuild(chat, context="") if chat.context is not None else chat.body
    message = body["messages"][chat.turn]
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    added = {"type": "text", "text": text}
    if place == "before":
        content = [added, *content]
    elif place == "behind":
        content = [*content, added]
    else:
        at = next(n for n, part in enumerate(content) if part["type"] == "text")
        content = [*content[:at], added, *content[at:]]
    messages = list(body["messages"])
    messages[chat.turn] = {**message, "content": content}
    return {**body, "messages": messages}
