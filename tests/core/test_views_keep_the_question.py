"""Whatever a request looks like, no view alters its question, its options or the model's own words."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat import parse, with_context, with_image, without_context
from modint_guard.guard import Guard
from modint_guard.types import JSON
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


@given(requests())
def test_no_view_alters_question_options_or_what_the_model_said(request: tuple[JSON, list[str]]) -> None:
    body, lines = request
    chat = parse(body)
    views = [view.body for view in Guard().plan(body).views]
    views += [without_context(chat), with_context(chat, "It rains."), with_image(chat, GREY)]
    for view in views:
        at = -1
        for line in lines:  # every line is there, whole and in order
            at = words(view).find(line, at + 1)
            assert at >= 0, (line, words(view))
        assert [m["role"] for m in view["messages"]] == [m["role"] for m in body["messages"]]
        said = [m["content"] for m in view["messages"] if m["role"] == "assistant"]
        assert said == [m["content"] for m in body["messages"] if m["role"] == "assistant"]
        pictures = [part for part in view["messages"][-1]["content"] if part["type"] == "image_url"]
        assert len(pictures) == len(chat.images)


@given(requests())
def test_a_context_that_is_told_from_the_question_is_gone_without_it(request: tuple[JSON, list[str]]) -> None:
    body, _ = request
    chat = parse(body)
    if chat.context is None:
        assert without_context(chat)["messages"] == body["messages"]
    else:
        assert parse(without_context(chat)).context is None
