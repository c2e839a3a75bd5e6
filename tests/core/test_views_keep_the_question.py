"""Whatever a request looks like, no view alters its question, its options or the model's own words."""

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.rebuild import rebuild
from modint_guard.chat.request import parse
from modint_guard.data.perturb import REGISTRY
from modint_guard.guard import Guard
from modint_guard.probing.views import BARE, VIEWS
from modint_guard.types import JSON, NEUTRAL_IMAGE, NO_CONTEXT, NOOP, PERMUTED_OPTIONS, QUESTION_FIRST
from tests.core.fakes import GREY, image_part, text_part

QUESTIONS = (
    "What colour is the ball?",
    "Name the colour.",
    "Look at the picture. Which colour has the ball?",
    "Question: What colour is it?",
    "¿De qué color es la pelota?",
    "球是什么颜色？",
    "ما لون الكرة؟",
    "Τι χρώμα είναι η μπάλα;",
    "Is it so? What colour is it then?",
)
OPTIONS = (
    (),
    ("A. red", "B. blue"),
    ("(A) red", "(B) blue"),
    ("A: red", "B: blue"),
    ("1) red", "2) blue", "3) green"),
    ("- red", "- blue"),
    ("A、红", "B、蓝"),
    ("Options:", "A. red", "B. blue"),
)
CONTEXTS = (
    "The ball is blue.",
    'The sign says "Is it blue?"',
    "Caption: was it blue? It was.",
    "图片显示一个蓝色的球。",
    "La pelota es azul.",
    "Facts:\n- The ball is blue.\n- It rolls.",
    "<context>\nThe ball is blue.\n</context>",
)
SYSTEM = (
    None,
    "You are brief.",
    "You are brief.\n\nContext: the ball is blue.",
    "The picture shows a blue ball.",
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[JSON, list[str]]:
    """A chat body, and the lines of its question and options."""
    lines = [draw(st.sampled_from(QUESTIONS)), *draw(st.sampled_from(OPTIONS))]
    asked = "\n".join(lines)
    context = draw(st.one_of(st.none(), st.sampled_from(CONTEXTS)))
    place = draw(st.sampled_from(("before", "after", "part before", "part after", "turn before")))
    texts = [asked]
    if context and place == "before":
        texts = [f"{context}\n{asked}"]
    elif context and place == "after":
        texts = [f"{asked}\n{context}"]
    elif context and place.startswith("part"):
        texts = [context, asked] if place == "part before" else [asked, context]
    images = [image_part()] * draw(st.integers(1, 3))
    messages: list[JSON] = []
    if (system := draw(st.sampled_from(SYSTEM))) is not None:
        messages.append({"role": "system", "content": system})
    if context and place == "turn before":
        messages += [
            {"role": "user", "content": context},
            {"role": "assistant", "content": "The ball is blue."},
        ]
    messages.append({"role": "user", "content": [*images, *map(text_part, texts)]})
    return {"model": "m", "messages": messages}, lines


def words(body: JSON) -> str:
    content: Any = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def pictures(body: JSON) -> list[JSON]:
    return [part for part in body["messages"][-1]["content"] if part["type"] == "image_url"]


def texts(body: JSON) -> list[Any]:
    """Every message without its pictures."""
    said = [message["content"] for message in body["messages"]]
    return [text if isinstance(text, str) else [p for p in text if p["type"] == "text"] for text in said]


def moved_on(lines: list[str]) -> list[str]:
    """The lines with the text of each labelled option moved on by one label."""
    places = [place for place, line in enumerate(lines) if place and not line.startswith(("-", "Options:"))]
    texts = [re.split("[ 、]", lines[place])[-1] for place in places]
    moved = dict(zip(places, zip(texts, texts[-1:] + texts[:-1], strict=True), strict=True))
    return [
        line.removesuffix(moved[place][0]) + moved[place][1] if place in moved else line
        for place, line in enumerate(lines)
    ]


def end_of(lines: list[str], text: str) -> int:
    """Where the lines end in a text, in which every one of them stands whole and in order."""
    at = -1
    for line in lines:
        at = text.find(line, at + 1)
        assert at >= 0, (line, text)
    return at + len(lines[-1])


PROBES = st.lists(st.sampled_from(sorted(VIEWS)), max_size=5, unique=True)


@given(requests(), PROBES)
def test_no_view_alters_question_options_or_what_the_model_said(
    request: tuple[JSON, list[str]], probes: list[str]
) -> None:
    body, lines = request
    chat = parse(body)
    plan = Guard().plan({**body, "modint": {"probes": probes}})
    views = [(view.name, view.body) for view in plan.views]
    are_bare = plan.judged_as in ("text", "unknown")
    views += [
        ("", rebuild(chat, context="")),
        ("", rebuild(chat, context="It rains.")),
        ("", rebuild(chat, images=[GREY] * len(chat.images))),
    ]
    for name, view in views:
        end = end_of(moved_on(lines) if name == PERMUTED_OPTIONS else lines, words(view))
        if name == QUESTION_FIRST:
            assert words(view).find(chat.context or "?", end) > 0
        assert [m["role"] for m in view["messages"]] == [m["role"] for m in body["messages"]]
        said = [m["content"] for m in view["messages"] if m["role"] == "assistant"]
        assert said == [m["content"] for m in body["messages"] if m["role"] == "assistant"]
        assert len(pictures(view)) == (0 if name in BARE and are_bare else len(chat.images))


@given(requests(), PROBES)
def test_a_probe_leaves_the_modality_alone_that_it_is_not_about(
    request: tuple[JSON, list[str]], probes: list[str]
) -> None:
    body, _ = request
    for view in Guard().plan({**body, "modint": {"probes": probes}}).views:
        about = REGISTRY[view.name].modality if view.name in REGISTRY else None
        if about == "text" or view.name in (NOOP, NO_CONTEXT, PERMUTED_OPTIONS, QUESTION_FIRST):
            assert pictures(view.body) == pictures(body)
        if about == "image" or view.name in (NOOP, NEUTRAL_IMAGE):
            assert texts(view.body) == texts(body)


@given(requests())
def test_a_context_that_is_told_from_the_question_is_gone_without_it(request: tuple[JSON, list[str]]) -> None:
    body, _ = request
    chat = parse(body)
    if chat.context is None:
        assert rebuild(chat, context="")["messages"] == body["messages"]
    else:
        assert parse(rebuild(chat, context="")).context is None
